"""Nothing is lost over several syncs: late files, quiet hours, and processes that die.

The clock hardly moves; what changes between syncs is what the sandbox has loaded.
"""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox import Project, Sandbox
from unit_tests.installed import WITHOUT_COSTS, Connector, Run, discovered_streams
from unit_tests.test_end_to_end import (
    DAY,
    HOUR,
    assert_delivered,
    by,
    events_of,
    hour,
    moment_of,
    now,
    truth,
)

pytestmark = pytest.mark.usefixtures("within_an_hour")


def first_hour() -> datetime:
    return hour(now()) - 20 * HOUR


@dataclass(frozen=True)
class SlowlyLoadedProject(Project):
    """A project of which some hours, or all but the first file of them, are not loaded yet."""

    missing: set[datetime] = field(default_factory=set)
    partial: set[datetime] = field(default_factory=set)

    def event_count(self, hour: datetime) -> int:
        return 0 if hour in self.missing else super().event_count(hour)

    def iter_members(self, hour: datetime) -> Iterator[tuple[str, bytes]]:
        members = list(super().iter_members(hour))
        yield from members[:1] if hour in self.partial else members

    def __hash__(self) -> int:
        return id(self)


def union(*runs: Run) -> list[dict[str, Any]]:
    return by("uuid", list({e["uuid"]: e for run in runs for e in run.records("events")}.values()))


def all_events(sandbox: Sandbox) -> list[dict[str, Any]]:
    return by("uuid", events_of(sandbox))


class TestLateFiles:
    def test_given_hours_whose_files_appear_over_several_syncs_when_read_then_all_arrive(
        self, tmp_path: Path
    ) -> None:
        last = hour(now()) - 3 * HOUR
        project = SlowlyLoadedProject(
            events_per_hour=100,  # enough for several files an hour
            first_hour=last - 6 * HOUR,
            missing={last - 3 * HOUR, last - HOUR},
            partial={last - 5 * HOUR, last - 2 * HOUR, last},
        )
        with Sandbox(project) as sandbox:
            assert len(list(Project.iter_members(project, last))) > 1
            connector = Connector(tmp_path, sandbox)
            runs = [connector.read("events")]
            project.partial.clear()
            runs.append(connector.read("events", state=runs[-1].states()))
            project.missing.clear()
            runs.append(connector.read("events", state=runs[-1].states()))
            assert len(union(runs[0])) < len(union(*runs[:2])) < len(union(*runs))
            assert union(*runs) == all_events(sandbox)

    def test_given_hours_loaded_in_disorder_when_read_then_the_look_back_brings_the_earlier_one(
        self, tmp_path: Path
    ) -> None:
        last = hour(now()) - 3 * HOUR
        project = SlowlyLoadedProject(first_hour=first_hour(), missing={last - 5 * HOUR})
        with Sandbox(project) as sandbox:
            connector = Connector(tmp_path, sandbox, request_time_range=1)
            first = connector.read("events")
            assert first.state("events") == {"server_upload_time": f"{last:%Y%m%dT%H}"}
            project.missing.clear()
            second = connector.read("events", state=first.states())
            assert union(first, second) == all_events(sandbox)


class TestQuietHours:
    def test_given_hours_without_data_when_read_then_the_hours_around_them_arrive(
        self, tmp_path: Path
    ) -> None:
        empty = frozenset(first_hour() + n * HOUR for n in (1, 2, 5, 6, 7, 8, 9, 14))
        with Sandbox(Project(first_hour=first_hour(), empty_hours=empty)) as sandbox:
            run = Connector(tmp_path, sandbox, request_time_range=2).read("events")
            assert by("uuid", run.records("events")) == all_events(sandbox)
            assert (
                "no events (HTTP 404: Unspecified Error: Raw data files were not found.)"
                in run.output
            )

    def test_given_a_month_without_data_when_read_twice_then_all_around_it_arrives_and_stays(
        self, tmp_path: Path
    ) -> None:
        start = hour(now()) - timedelta(days=33)
        empty = frozenset(start + n * HOUR for n in range(5, 31 * 24))
        with Sandbox(Project(first_hour=start, empty_hours=empty, events_per_hour=5)) as sandbox:
            connector = Connector(tmp_path, sandbox, num_workers=5)
            first = connector.read("events")
            assert by("uuid", first.records("events")) == all_events(sandbox)
            second = connector.read("events", state=first.states())
            assert union(first, second) == all_events(sandbox)
            assert second.state("events") == first.state("events")

    def test_given_a_project_that_begins_to_send_when_read_then_its_first_events_arrive(
        self, tmp_path: Path
    ) -> None:
        hours = {first_hour() + n * HOUR for n in range(20)}
        project = SlowlyLoadedProject(first_hour=first_hour(), missing=set(hours))
        with Sandbox(project) as sandbox:
            connector = Connector(tmp_path, sandbox, lookback_window_hours=0)
            first = connector.read("events")
            assert first.records("events") == []
            project.missing.clear()
            second = connector.read("events", state=first.states())
            assert by("uuid", second.records("events")) == all_events(sandbox)


class TestNoLookBack:
    def test_given_no_look_back_when_read_again_and_again_then_no_event_comes_twice(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(first_hour=first_hour()), export_delay=10 * HOUR) as sandbox:
            connector = Connector(tmp_path, sandbox, lookback_window_hours=0)
            state, delivered = None, []
            for delay in (10, 7, 7, 4, 2):
                sandbox.export_delay = delay * HOUR
                run = connector.read("events", state=state)
                state = run.states()
                delivered += run.records("events")
            assert by("uuid", delivered) == all_events(sandbox)


class TestDeath:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
    def test_given_syncs_killed_at_random_points_when_resumed_until_done_then_nothing_is_lost(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        chance = random.Random(number)
        project = Project(events_per_hour=100, first_hour=first_hour())
        with Sandbox(project) as sandbox:
            connector = Connector(
                tmp_path, sandbox, request_time_range=2, num_workers=3, lookback_window_hours=2
            )
            delivered: dict[str, dict[str, Any]] = {}
            states: dict[str, Any] = {}
            options = connector.read_options("events")
            deaths = 0
            for _ in range(100):
                process = connector.start("read", *options)
                assert process.stdout
                output, lines = "", 0
                # Enough of each to get on: a state comes after a window of some 200 events.
                patience = chance.randint(250, 1_000)
                for line in process.stdout:
                    output += line
                    lines += '"RECORD"' in line
                    if lines == patience:
                        process.send_signal(number)
                # What was printed before the death counts, but for a line that was cut off.
                complete, _, _ = output.rpartition("\n")
                code = process.wait(timeout=60)
                run = connector.finished(process, complete)
                delivered |= {event["uuid"]: event for event in run.records("events")}
                if run.states():
                    states["last"] = run.states()
                    options = connector.read_options("events", state=states["last"])
                if code == 0:
                    break
                deaths += 1
            assert code == 0, "100 syncs were not enough"
            assert deaths >= 2
            assert by("uuid", list(delivered.values())) == all_events(sandbox)


def test_given_days_have_passed_when_read_again_then_nothing_is_left_as_it_was_before_its_end(
    tmp_path: Path,
) -> None:
    streams = ["weekly_user_counts", "monthly_user_counts", "retention", "revenue_ltv"]
    streams += ["session_replays", "deletion_jobs", "deleted_users"]
    moment = now()
    project = Project(events_per_hour=20, first_hour=hour(moment) - 45 * DAY)
    # As of six days ago, while a session was going on; to that clock, the days since then have no
    # figures yet.
    a_day_before = (moment - 7 * DAY, moment - 6 * DAY)
    under_way = next(project.iter_session_replays(*a_day_before, newest_first=True))
    then = moment_of(under_way["start_time"]) + timedelta(seconds=1)
    with Sandbox(project, clock=lambda: then, cost_limits=()) as sandbox:
        connector = Connector(tmp_path, sandbox, WITHOUT_COSTS)
        first = connector.read(*streams)
        sandbox.clock = lambda: moment
        second = connector.read(*streams, state=first.states())
        after = truth(sandbox)
    keys = {
        stream["name"]: [name for [name] in stream["source_defined_primary_key"]]
        for stream in discovered_streams()
    }
    for stream in streams:
        held: dict[tuple[str, ...], dict[str, Any]] = {}
        for run in (first, second):
            held |= {tuple(r[k] for k in keys[stream]): r for r in run.records(stream)}
        assert_delivered(held.values(), after[stream], stream)
        assert any(record not in after[stream] for record in first.records(stream)), stream
