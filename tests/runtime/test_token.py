"""Who may call an engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.runtime.token import FleetToken, shown
from talkingmachines.errors import Unauthenticated


class Call:
    def __init__(self, authorization: str | None) -> None:
        self._authorization = authorization

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [] if self._authorization is None else [("authorization", self._authorization)]


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "old", "Basic old", "Bearer ol", "Bearer older", "Bearer é"],
)
def test_whoever_shows_no_valid_token_is_refused(tmp_path: Path, header: str | None) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    with pytest.raises(Unauthenticated):
        FleetToken(file).check(Call(header))


def test_a_token_can_be_changed_while_calls_go_on(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    token = FleetToken(file)
    token.check(Call("Bearer old"))
    for number, (content, valid, invalid) in enumerate(
        [("old\nnew\n", ["old", "new"], []), ("", ["old", "new"], []), ("new\n", ["new"], ["old"])]
    ):
        file.write_text(content)
        os.utime(file, ns=(number, number))
        for each in valid:
            token.check(Call(f"Bearer {each}"))
        for each in invalid:
            with pytest.raises(Unauthenticated):
                token.check(Call(f"Bearer {each}"))


def test_callers_show_the_first_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for content in ("old\n", "old\nnew\n", "new\nold\n", "\n  new  \n"):
        file.write_text(content)
        name, value = shown(file)
        assert (name, value) == ("authorization", f"Bearer {content.split()[0]}")
        FleetToken(file).check(Call(value))


def test_a_file_without_a_token_keeps_the_service_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no token"):
        FleetToken(file)


def test_without_a_file_everybody_may_call() -> None:
    FleetToken(None).check(Call(None))
