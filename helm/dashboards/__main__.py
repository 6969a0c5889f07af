"""`python -m helm.dashboards [--check]`: render the dashboards into the chart."""

from __future__ import annotations

import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from helm.dashboards.calls import CALLS
from helm.dashboards.engines import ENGINES
from helm.dashboards.fleet import FLEET
from helm.dashboards.parts import Board, built
from helm.schema import CHART

BOARDS = (CALLS, FLEET, ENGINES)
FOLDER = CHART / "files" / "dashboards"


def render(board: Board) -> str:
    encoded: str = JSONEncoder(sort_keys=True, indent=1).encode(built(board).build())
    return encoded + "\n"


def main() -> None:
    for board in BOARDS:
        file = FOLDER / f"{board.name}.json"
        if "--check" not in sys.argv[1:]:
            file.write_text(render(board))
        elif not file.exists() or file.read_text() != render(board):
            sys.exit(f"{file} is stale: run python -m helm.dashboards")


if __name__ == "__main__":
    main()
