"""`status --cluster` and `doctor --cluster`: a release in Kubernetes, looked at from outside.

Needs `talkingmachines[cluster]`, when asked and only then.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from talkingmachines.cli.cluster.findings import findings
from talkingmachines.cli.cluster.reading import Place, seen
from talkingmachines.cli.cluster.table import shown, standing
from talkingmachines.cli.console import OUT
from talkingmachines.cli.doctor import Finding


async def status(place: Place, *, as_json: bool) -> None:
    """Show how many pods of each part are ready, and what they hold.

    Raises:
        TalkingMachinesError: there is no cluster, or nothing in it.
    """
    found = standing(await seen(place))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        OUT.print(shown(found))


async def examine(place: Place) -> list[Finding]:
    """What is wrong there, what is wrong first.

    Raises:
        TalkingMachinesError: there is no cluster, or nothing in it.
    """
    return findings(await seen(place))
