"""Where a fleet on this machine keeps its files, and whether one runs.

Shared by the fleet, which writes the notice, and by clients that look for it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

DATA_VARIABLE = "TM_LOCAL_DATA"
DEFAULT_PORT = 50050

_NOTICE = "fleet.json"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything of a running fleet is."""

    address: str  # of the gateway: what clients are given
    metrics: dict[str, list[str]]  # host:port to try, by service
    redis: str
    engines: str  # of the ingress of score and VAE
    pid: int  # of the process that ends it all
    characters: list[str]  # ids of those that come with the model
    bridge: str = ""  # of the bridge to a speech model; empty: no conversations are held
    advice: str = ""  # then: what to do to have them
    page: str = ""  # where browsers call
    ready_seconds: float = 0.0  # that starting took

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Addresses:
        """What `to_json` gave; other names beside are left out."""
        given = json.loads(text)
        return cls(**{field.name: given[field.name] for field in fields(cls)})


def data_folder() -> Path:
    """Of this user's fleet: characters, sessions, logs."""
    given = os.environ.get(DATA_VARIABLE)
    return Path(given) if given else Path.home() / ".local" / "share" / "talkingmachines"


def write_notice(data: Path, addresses: Addresses) -> Path:
    notice = data / _NOTICE
    notice.write_text(addresses.to_json())
    return notice


def running_fleet(data: Path) -> Addresses | None:
    """The fleet that runs with this data folder, if any."""
    try:
        addresses = Addresses.from_json((data / _NOTICE).read_text())
        os.kill(addresses.pid, 0)
    except (OSError, ValueError, KeyError):
        return None
    return addresses
