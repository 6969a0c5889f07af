"""Processes of a fleet on this machine, read from /proc: who they are and what memory they hold."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from loadtest.scenario import Part

# How command lines of each part's processes begin, or what they hold.
_SIGNS = {
    Part.SCORE: "ray::ServeReplica:score",
    Part.VAE: "ray::ServeReplica:vae",
    Part.INGRESS: "ray::ProxyActor",
    Part.GATEWAY: "services.gateway",
    Part.BRIDGE: "services.llm_bridge",
    Part.REDIS: "valkey-server",
}


def descendants(root: int) -> dict[int, str]:
    """Command lines of all processes below `root`, itself included, by process id."""
    parents, lines = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):  # it has just ended
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                pid = int(folder.name)
                parents[pid] = int(parent)
                lines[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    below = {root}
    while found := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= found
    return {pid: lines[pid] for pid in sorted(below) if pid in lines}


def of_part(root: int, part: Part) -> list[int]:
    """Ids of a part's processes below `root`."""
    return [pid for pid, line in descendants(root).items() if _SIGNS[part] in line]


def memory_mb(root: int) -> dict[str, float]:
    """What each process below `root` holds for itself alone, by a name and its id."""
    return {
        f"{_name(line)} {pid}": held
        for pid, line in descendants(root).items()
        if (held := _anonymous_mb(pid)) is not None
    }


def _anonymous_mb(pid: int) -> float | None:
    """Memory that is no file's: what a leak would be in."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return None


def _name(line: str) -> str:
    for part, sign in _SIGNS.items():
        if sign in line:
            return str(part)
    words = line.split()
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return Path(words[0]).name if words else "?"
