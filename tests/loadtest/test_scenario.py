"""Scenarios: those that come along, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.arrivals import arrivals
from loadtest.faults import planned
from loadtest.scenario import BadScenario, Scenario, names, read

GOOD = """
name = "good"
about = "Two phases, two kinds of callers."

[[phases]]
name = "slow"
seconds = 60
calls_per_minute = 6
spread = "even"

[[phases]]
name = "growing"
seconds = 60
at_once = 3
calls_per_minute = 0
until_per_minute = 60
spread = "even"

[[callers]]
name = "often"
share = 3
call_seconds = [5, 9]

[[callers]]
name = "seldom"
call_seconds = 4
endings = {hang_up = 1, vanish = 1}

[faults]
every_seconds = 20
each_of = [
  {do = "kill", part = "score"},
  {do = "freeze", part = "vae", seconds = [1, 2]},
  {do = "delay", line = "engines", seconds = 3, delay_ms = 50},
]

[[objectives]]
measure = "stalls"
of = "most"
at_most = 1.5
phase = "slow"
"""


def scenario(folder: Path, text: str) -> Scenario:
    file = folder / "scenario.toml"
    file.write_text(text)
    return read(str(file))


@pytest.mark.parametrize("name", names())
def test_what_comes_along_is_sound(name: str) -> None:
    found = read(name)
    assert found.name == name
    assert arrivals(found)


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (
            "seconds = 60",
            "seconds = -1",
            "phases.0.seconds: Input should be greater than 0, got -1",
        ),
        ('part = "score"', 'part = "scoer"', "faults.each_of.0.kill.part: Input should be"),
        ("call_seconds = [5, 9]", "call_seconds = [9, 5]", "expected the smaller number first"),
        ("share = 3", "shore = 3", "callers.0.shore: Extra inputs are not permitted, got 3"),
        ('phase = "slow"', 'phase = "slo"', "expected a phase of slow, growing, got 'slo'"),
        ('name = "seldom"', 'name = "often"', "callers: expected different names"),
        ("at_most = 1.5", "", "expected at_most, at_least or both, got neither"),
        (", delay_ms = 50", "", "delay_ms: expected a number above 0 with delay"),
        ("{hang_up = 1, vanish = 1}", "{hang_up = 0}", "expected at least one share above 0"),
        ("[faults]", "[faults", "expected TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, was: str, now: str, says: str) -> None:
    assert was in GOOD
    with pytest.raises(BadScenario, match=r"scenario\.toml") as error:
        scenario(tmp_path, GOOD.replace(was, now, 1))
    assert says in str(error.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    wrong = GOOD.replace("share = 3", "share = -3").replace("at_once = 3", "at_once = -3")
    with pytest.raises(BadScenario) as error:
        scenario(tmp_path, wrong)
    assert len(str(error.value).splitlines()) == 3


def test_a_name_that_is_none_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(BadScenario, match=r"steady.*got 'stedy'"):
        read("stedy")


def test_even_arrivals_are_as_computed_by_hand(tmp_path: Path) -> None:
    found = arrivals(scenario(tmp_path, GOOD))
    times = [arrival.at for arrival in found]
    assert times[:6] == pytest.approx([0, 10, 20, 30, 40, 50])
    # From 0 to 1 a second within 60 s: t^2 / 120 callers until t, so one at every sqrt(120 n).
    later = sorted([60, 60, 60, *(60 + (120 * n) ** 0.5 for n in range(30))])
    assert times[6:] == pytest.approx(later)
    assert [arrival.number for arrival in found] == list(range(39))


def test_random_arrivals_have_the_rate_that_was_asked_for_and_do_not_change(tmp_path: Path) -> None:
    text = GOOD.replace('spread = "even"', 'spread = "random"').replace(
        "seconds = 60", "seconds = 6000"
    )
    found = scenario(tmp_path, text)
    first = [one.at for one in arrivals(found) if one.at < 6000]
    assert 600 - 5 * 600**0.5 < len(first) < 600 + 5 * 600**0.5
    assert arrivals(found) == arrivals(found)
    other = arrivals(found.model_copy(update={"seed": 2}))
    assert [one.at for one in other] != [one.at for one in arrivals(found)]


def test_kinds_come_by_their_shares(tmp_path: Path) -> None:
    found = arrivals(scenario(tmp_path, GOOD.replace("calls_per_minute = 6\n", "at_once = 4000\n")))
    often = sum(one.caller.name == "often" for one in found) / len(found)
    assert 0.72 < often < 0.78
    assert all(5 <= one.call_seconds <= 9 for one in found if one.caller.name == "often")
    assert {str(one.ending) for one in found if one.caller.name == "often"} == {"hang_up"}
    assert {str(one.ending) for one in found if one.caller.name == "seldom"} == {
        "hang_up",
        "vanish",
    }


def test_faults_come_on_time_and_leave_time_to_recover(tmp_path: Path) -> None:
    found = scenario(tmp_path, GOOD)
    plan = planned(found)
    assert [due.at for due in plan] == [10, 30, 50, 70, 90, 110]
    assert plan == planned(found)
    for due in plan:
        match due.fault.do:
            case "kill":
                assert due.seconds == 0
            case "freeze":
                assert 1 <= due.seconds <= 2
            case _:
                assert due.seconds == 3


def test_a_phase_ends_where_the_next_begins(tmp_path: Path) -> None:
    found = scenario(tmp_path, GOOD)
    assert [found.phase_at(at) for at in (0, 59.9, 60, 119, 500)] == [
        "slow",
        "slow",
        "growing",
        "growing",
        "growing",
    ]


def test_every_fault_has_its_turn_before_any_comes_again(tmp_path: Path) -> None:
    for seed in range(5):
        plan = planned(scenario(tmp_path, GOOD).model_copy(update={"seed": seed}))
        assert {due.fault.do for due in plan[:3]} == {"kill", "freeze", "delay"}
        assert {due.fault.do for due in plan[3:]} == {"kill", "freeze", "delay"}
