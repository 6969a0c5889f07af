"""`talkingmachines models`: which public weights there are, and what becomes of those at hand.

The list is here. What reads tensors runs as a process of the services, in a checkout.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from talkingmachines.cli.server import serve_environment
from talkingmachines.weights import CATALOGUE

_COLUMNS = ("name", "from", "what", "weights", "code", "about GB", "live", "here")


def list_(*, as_json: bool) -> None:
    """Print the known public weights, their licences first of all."""
    if as_json:
        print(json.dumps([asdict(one) for one in CATALOGUE], indent=2))
        return
    table = Table(*_COLUMNS, title="Public weights; licences as their publishers told them")
    for one in CATALOGUE:
        table.add_row(
            one.name,
            one.repository,
            one.gives,
            one.weights_licence,
            one.code_licence,
            f"{one.gigabytes:g}",
            "yes" if one.live else "no",
            one.runs + (f"; needs {', '.join(one.needs)}" if one.needs else ""),
        )
    Console().print(table)


def run(command: str, arguments: Sequence[str]) -> int:
    """Run verify, plan or convert; its exit code.

    Raises:
        NoFleet: there are no services here.
    """
    told = [sys.executable, "-m", "services.score.models", command, *arguments]
    return subprocess.run(told, env=serve_environment(), check=False).returncode
