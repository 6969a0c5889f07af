"""Ask a Prometheus what the dashboards ask it, with their variables filled in.

Beside `parts`: Grafana does this for operators; here it is for `preview`, and for the test that
every query of every panel returns data.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode
from urllib.request import urlopen

from helm.dashboards.parts import Query

_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """A series, called as the panel's legend calls it; times in seconds since 1970."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Window:
    """What is looked at.

    rate: seconds that rates are taken over; at least four times what lies between two scrapes.
    """

    address: str  # http://host:port
    namespace: str
    seconds: float
    step: float
    rate: float

    def lines(self, query: Query) -> list[Line]:
        """The query's series, without values that are no numbers.

        Raises:
            OSError: Prometheus does not answer, or not with yes.
        """
        expr = query.expr.replace("$__rate_interval", f"{self.rate:g}s")
        expr = expr.replace("$namespace", self.namespace)
        end = time.time()
        asked = {"query": expr, "start": end - self.seconds, "end": end, "step": self.step}
        url = f"{self.address}/api/v1/query_range?{urlencode(asked)}"
        with urlopen(url, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310  the operator's own
            found = json.load(answer)["data"]["result"]
        lines = [Line(_called(query.legend, one["metric"]), _points(one)) for one in found]
        return [line for line in lines if line.points]


def _points(series: Mapping[str, Sequence[tuple[float, str]]]) -> Sequence[tuple[float, float]]:
    both = ((float(at), float(value)) for at, value in series["values"])
    return [(at, value) for at, value in both if math.isfinite(value)]


def _called(legend: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend
