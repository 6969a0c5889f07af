"""`talkingmachines models`: which public weights there are, and what becomes of those at hand.

The list is here. What reads tensors runs as a process of the services, in a checkout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from talkingmachines.cli.server import serve_environment
from talkingmachines.weights import CATALOGUE, KnownWeights

_WIDTH = 88


def list_(*, as_json: bool) -> None:
    """Print the known public weights, their licences first of all."""
    if as_json:
        print(json.dumps([asdict(one) for one in CATALOGUE], indent=2))
        return
    print("\n\n".join(map(_described, CATALOGUE)))
    print(
        "\nLicences as far as could be found; read their publishers' own before you rely on them."
    )


def _described(one: KnownWeights) -> str:
    live = "live" if one.live else "not live"
    needs = f"; needs {', '.join(one.needs)}" if one.needs else ""
    lines = (
        ("licence", f"weights {one.weights_licence}; code {one.code_licence}"),
        ("found", one.licence_found),
        ("what", one.gives),
        ("here", f"{live}; {one.runs}{needs}"),
    )
    head = f"{one.name}: {one.repository}, about {one.gigabytes:g} GB"
    return "\n".join([head, *(_folded(name, text) for name, text in lines)])


def _folded(name: str, text: str) -> str:
    first = f"  {name:<8} "
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def run(command: str, arguments: Sequence[str]) -> int:
    """Run verify, plan or convert; its exit code.

    Raises:
        NoFleet: there are no services here.
    """
    told = [sys.executable, "-m", "services.score.models", command, *arguments]
    return subprocess.run(told, env=serve_environment(), check=False).returncode
