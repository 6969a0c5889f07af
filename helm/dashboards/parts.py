"""What all dashboards are made of: rows of panels over one Prometheus, and what surrounds them.

Below `calls.py`, `fleet.py` and `engines.py`, which only say what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_HEIGHT, _WIDTHS = 8, {1: 24, 2: 12, 3: 8, 4: 6}

# What every query is narrowed to.
HERE = 'namespace="$namespace"'


@dataclass(frozen=True, slots=True)
class Query:
    """A query and how its series are called; `{{label}}` stands for a label's value."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture of some queries.

    unit: as Grafana names it: s, percentunit, short, bytes, reqps.
    limit: from where on it is bad, drawn as a line.
    """

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    limit: float | None = None
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    name: str  # of the file, and in links
    title: str
    rows: tuple[Row, ...]


def quantiles(metric: str, by: str = "", *, where: str = "") -> tuple[Query, ...]:
    """Median, and where the slowest tenth and hundredth begin."""
    labels = f"{HERE}, {where}" if where else HERE
    groups = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(
            f"histogram_quantile({share}, "
            f"sum by ({groups}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            f"{legend}{name}",
        )
        for share, name in ((0.5, "median"), (0.9, "slowest tenth"), (0.99, "slowest hundredth"))
    )


def rate(metric: str, by: str = "") -> Query:
    """Events a second."""
    group = f" by ({by})" if by else ""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",")) if by else "all"
    return Query(f"sum{group} (rate({metric}{{{HERE}}}[$__rate_interval]))", legend)


def total(metric: str, by: str = "") -> Query:
    """A gauge over all pods."""
    group = f" by ({by})" if by else ""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",")) if by else "all"
    return Query(f"sum{group} ({metric}{{{HERE}}})", legend)


def recorded(name: str, legend: str) -> Query:
    """What a recording rule keeps."""
    return Query(f"{name}{{{HERE}}}", legend)


def built(board: Board) -> dashboard.Dashboard:
    """The dashboard as the SDK has it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(f"talkingmachines-{board.name}")
        .tags(["talkingmachines"])
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus")
        )
        .with_variable(
            dashboard.QueryVariable("namespace")
            .label("Namespace")
            .datasource(_SOURCE)
            .query("label_values(tm_draining, namespace)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        .link(
            dashboard.DashboardLink("talkingmachines")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["talkingmachines"])
            .keep_time(True)
            .include_vars(True)
        )
        .annotation(_annotation("alerts", f'ALERTS{{alertstate="firing", {HERE}}}', "red"))
        .annotation(_annotation("gateways drain", f"tm_draining{{{HERE}}} == 1", "orange"))
    )
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(_panel(panel, _WIDTHS[len(row.panels)]))
    return made


def _annotation(name: str, expr: str, color: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(_SOURCE)
        .enable(True)
        .icon_color(color)
        .expr(expr)
    )


def _panel(panel: Panel, width: int) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.meaning)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .height(_HEIGHT)
        .span(width)
        .fill_opacity(30 if panel.stacked else 5)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    for query in panel.queries:
        made = made.with_target(prometheus.Dataquery().expr(query.expr).legend_format(query.legend))
    return _limited(made, panel.limit)


def _limited(made: timeseries.Panel, limit: float | None) -> timeseries.Panel:
    if limit is None:
        return made
    steps: Sequence[Threshold] = [
        Threshold(value=None, color="green"),
        Threshold(value=limit, color="red"),
    ]
    thresholds = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(list(steps))
    style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
    return made.thresholds(thresholds).thresholds_style(style)
