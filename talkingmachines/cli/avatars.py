"""`talkingmachines avatars`: characters listed, made and deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from talkingmachines.cli.console import ERRORS, OUT
from talkingmachines.cli.server import Server, connected
from talkingmachines.v1 import avatar_pb2


async def list_(server: Server, *, as_json: bool) -> None:
    async with connected(server, starting=starting) as client:
        found = [avatar async for avatar in client.avatars.list()]
    if as_json:
        print(json.dumps([described(avatar) for avatar in found]))
        return
    table = Table("id", "name", "faces", "created", "shared")
    for avatar in found:
        created = avatar.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M")
        shared = "yes" if avatar.shared else ""
        faces = str(len(avatar.speakers))
        table.add_row(avatar.avatar_id, avatar.display_name, faces, created, shared)
    OUT.print(table if found else "no characters")


async def create(
    server: Server, picture: Path, name: str, prompts: tuple[str, str], *, as_json: bool
) -> None:
    """`prompts`: what it does while it speaks, and while it listens."""
    async with connected(server, starting=starting) as client:
        speaking, listening = prompts
        avatar = await client.avatars.create(
            picture, name, prompt=speaking, listening_prompt=listening
        )
    print(json.dumps(described(avatar)) if as_json else avatar.avatar_id)


async def delete(server: Server, avatar_id: str) -> None:
    async with connected(server, starting=starting) as client:
        await client.avatars.delete(avatar_id)


def described(avatar: avatar_pb2.Avatar) -> dict[str, Any]:
    return {
        "avatar_id": avatar.avatar_id,
        "display_name": avatar.display_name,
        "created": avatar.create_time.ToJsonString(),
        "faces": len(avatar.speakers),
        "shared": avatar.shared,
    }


def starting() -> None:
    ERRORS.print("no fleet runs here: starting one for this command")
