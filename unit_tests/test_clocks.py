"""The moments at which ``make test-clocks`` runs the tests, and the clock of commands in tests."""

import importlib.util
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from zoneinfo import ZoneInfo

import pytest

from sandbox import Project, Sandbox
from unit_tests.installed import MOMENT, Connector

SCRIPT = Path(__file__).parents[1] / "scripts" / "clocks.py"
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture(scope="module")
def clocks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clocks", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_night_of_change(moment: datetime, hours: int) -> bool:
    """Whether the clocks of Berlin change within a minute, by so many hours."""
    berlin = ZoneInfo("Europe/Berlin")
    utc = moment.astimezone(timezone.utc)
    before, after = ((utc + n * MINUTE).astimezone(berlin).utcoffset() for n in (0, 1))
    assert before is not None
    assert after is not None
    return after - before == timedelta(hours=hours)


# What holds of a moment, on the clock of its zone.
@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("first minute of an hour", lambda moment: moment.minute == 0),
        ("last minute of an hour", lambda moment: moment.minute == 59),
        ("first minute of a day", lambda moment: (moment.hour, moment.minute) == (0, 0)),
        ("last minute of a day", lambda moment: (moment.hour, moment.minute) == (23, 59)),
        ("first day of a month", lambda moment: moment.day == 1),
        ("last day of a month", lambda moment: (moment + DAY).day == 1),
        ("29 February", lambda moment: (moment.month, moment.day) == (2, 29)),
        ("31 December", lambda moment: (moment.month, moment.day) == (12, 31)),
        ("Monday", lambda moment: moment.weekday() == 0),
        ("Sunday", lambda moment: moment.weekday() == 6),
        ("night in which clocks go forward", lambda moment: is_night_of_change(moment, 1)),
        ("night in which clocks go back", lambda moment: is_night_of_change(moment, -1)),
    ],
)
def test_when_clocks_are_moved_then_each_moment_is_what_its_name_says(
    clocks: ModuleType, name: str, holds: Callable[[datetime], bool]
) -> None:
    moments = [
        datetime.fromisoformat(f"{text}+00:00").astimezone(ZoneInfo(zone))
        for what, zone, text in clocks.MOMENTS
        if what.startswith(name)
    ]
    assert moments
    for moment in moments:
        assert holds(moment), moment


def test_given_days_when_clocks_are_moved_then_each_has_a_moment_and_a_seed_gives_the_same(
    clocks: ModuleType,
) -> None:
    moments = clocks.random_moments(21, seed=3)
    days = [datetime.fromisoformat(text).date() for _, _, text in moments]
    assert days == [days[0] + n * DAY for n in range(21)]
    assert moments == clocks.random_moments(21, seed=3)


def test_given_no_faketime_when_clocks_are_moved_then_it_says_what_to_install(
    clocks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert clocks.main([]) == 2
    assert "apt-get install faketime" in capsys.readouterr().out


@pytest.mark.parametrize("moment", [MOMENT, datetime(2031, 12, 31, 23, 5, tzinfo=timezone.utc)])
def test_given_a_sandbox_when_a_command_is_started_then_its_clock_goes_on_from_the_sandboxs(
    tmp_path: Path, moment: datetime
) -> None:
    script = "from datetime import datetime, timezone; print(datetime.now(timezone.utc))"
    with Sandbox(Project(), clock=lambda: moment) as sandbox:
        told = Connector(tmp_path, sandbox, [sys.executable, "-c", script]).run("spec").output
    assert told.startswith(f"{moment:%Y-%m-%d %H}:")
