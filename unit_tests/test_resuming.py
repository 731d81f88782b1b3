"""Whatever fails, comes late or dies in one sync is brought by those that follow.

Each sync runs in this process against a model of a project; a death is an output that ends early.
"""

import json
import os
import random
import re
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import freezegun
import pytest
import requests_mock
from airbyte_cdk.models import SyncMode
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput, read
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from airbyte_cdk.test.state_builder import StateBuilder

from source_amplitude import SourceAmplitude
from unit_tests.helpers import (
    archive,
    config,
    first_error,
    json_lines,
    logged,
    printed_state,
    read_stream,
    records,
)

START = datetime(2024, 1, 1)
SYNCS = 5


class Export:
    """A project's files by hour, with an event each; a window with a bad hour fails."""

    stream, cursor, form, unit = "events", "server_upload_time", "%Y%m%dT%H", timedelta(hours=1)
    url = "https://amplitude.com/api/2/export"
    age_of_newest = timedelta(hours=3)

    def __init__(self) -> None:
        self.versions: dict[datetime, int] = {}
        self.bad: set[datetime] = set()

    def parts(self) -> list["Export"]:
        """What has a state of its own."""
        return [self]

    def saved(self, state: Any) -> datetime:
        if not state:
            return START - self.unit
        return datetime.strptime(state[self.cursor], self.form)

    def is_settled(self, unit: datetime, state: Any, look_back: int) -> bool:
        """Whether a unit after the saved one does not change any more."""
        return False

    def answer(self, request: Any, context: Any) -> bytes:
        threading.Event().wait(random.random() / 500)  # so that windows finish in any order
        start, end = (
            datetime.strptime(request.qs[name][0].upper(), self.form.replace("-", ""))
            for name in ("start", "end")
        )
        units = [start + n * self.unit for n in range((end - start) // self.unit + 1)]
        return self.body(units, bool(self.bad.intersection(units)), context)

    def body(self, hours: list[datetime], is_bad: bool, context: Any) -> bytes:
        events = [
            {"uuid": f"{hour}#{n}", "server_upload_time": f"{hour:%Y-%m-%d %H}:30:00.000000"}
            for hour in hours
            for n in range(self.versions.get(hour, 0))
        ]
        if not events and not is_bad:
            context.status_code = 404
            return b"Raw data files were not found."
        return archive({"m.gz": (b"no event\n" if is_bad else b"") + json_lines(events)})

    def truth(self) -> set[str]:
        return {f"{hour}#{n}" for hour, count in self.versions.items() for n in range(count)}

    @staticmethod
    def name(record: Mapping[str, Any]) -> str:
        return str(record["uuid"])


class Files(Export):
    """A project's files by hour, each handed over; a window with a bad hour is cut off."""

    stream, cursor = "raw_events_files", "hour"

    def is_settled(self, unit: datetime, state: Any, look_back: int) -> bool:
        """It has been read beyond a gap, and the newest hour is more than the look-back away."""
        hours = self._hour
        return any(
            hours(each["from"])
            <= unit
            <= min(hours(each["to"]), hours(state["newest"]) - look_back * self.unit)
            for each in (state or {}).get("later", [])
        )

    def _hour(self, text: str) -> datetime:
        return datetime.strptime(text, self.form)

    def body(self, hours: list[datetime], is_bad: bool, context: Any) -> bytes:
        members = {
            f"1_{hour:%Y-%m-%d}_{hour.hour}#{n}.json.gz": b"{}\n"
            for hour in hours
            for n in range(self.versions.get(hour, 0))
        }
        if not members and not is_bad:
            context.status_code = 404
            return b"Raw data files were not found."
        whole = archive(members)
        return whole[:-30] if is_bad else whole

    @staticmethod
    def name(record: Mapping[str, Any]) -> str:
        number = re.findall(r"#(\d+)", record["file"])[0]
        return f"{datetime.fromisoformat(record['hour']).replace(tzinfo=None)}#{number}"


class Series(Export):
    """A project's days, each asked for by itself, with the number of its latest version."""

    stream, cursor, form, unit = "average_session_length", "date", "%Y-%m-%d", timedelta(days=1)
    url = "https://amplitude.com/api/2/sessions/average"
    age_of_newest = timedelta(0)

    def body(self, days: list[datetime], is_bad: bool, context: Any) -> bytes:
        days = days[::-1]  # as good as any other order
        values: list[Any] = [self.versions.get(day, 0) for day in days]
        if is_bad:
            values[0] = "no number"
        return json.dumps(
            {"data": {"xValues": [f"{day:%Y-%m-%d}" for day in days], "series": [values]}}
        ).encode()

    def truth(self) -> set[str]:
        return {f"{day:%Y-%m-%d}#{version}" for day, version in self.versions.items()}

    @staticmethod
    def name(record: Mapping[str, Any]) -> str:
        return f"{record['date']}#{record['length']}"


class Counts(Series):
    """A project's days for one metric of two, each of which has a state of its own."""

    stream, url = "daily_user_counts", "https://amplitude.com/api/2/users"

    def __init__(self, metric: str, *others: "Counts") -> None:
        super().__init__()
        self.metric, self.others = metric, others

    def parts(self) -> list[Export]:
        return [self, *self.others]

    def saved(self, state: Any) -> datetime:
        for each in state["states"] if state else ():
            if each["partition"] == {"metric": self.metric}:
                return super().saved(each["cursor"])
        return super().saved(None)

    def answer(self, request: Any, context: Any) -> bytes:
        for other in self.others:
            if request.qs["m"] == [other.metric]:
                return other.answer(request, context)
        return super().answer(request, context)

    def truth(self) -> set[str]:
        own = {f"{self.metric} {version}" for version in super().truth()}
        return own.union(*(other.truth() for other in self.others))

    @staticmethod
    def name(record: Mapping[str, Any]) -> str:
        return f"{record['metric']} {record['date']}#{record['users']}"


class Weeks(Counts):
    """A project's weeks, of which a state or a look-back may begin in the middle."""

    stream, unit = "weekly_user_counts", timedelta(days=7)


def until(output: EntrypointOutput, count: int | None) -> tuple[list[Any], Any]:
    """The records among the first ``count`` messages, and the last state."""
    messages = output.records_and_state_messages[:count]
    states = [message.state for message in messages if message.state]
    last = dict(vars(states[-1].stream.stream_state)) if states else None  # type: ignore[union-attr]
    return [message.record.data for message in messages if message.record], last


def union_of_syncs(project: Export, step: timedelta, look_back: int, fields: Any, seed: int) -> Any:
    """What arrives over some syncs, of which all but the last meet failures, or die."""
    chance, now = random.Random(seed), START + 12 * project.unit
    arrived: set[str] = set()
    state: Any = None
    for sync in range(SYNCS):
        is_last = sync == SYNCS - 1
        newest = now - project.age_of_newest
        for part in project.parts():
            saved = part.saved(state)
            first = max(START, saved - (look_back - 1) * part.unit)
            units = [first + n * part.unit for n in range((newest - first) // part.unit + 1)]
            for each in units:  # those that are new, and those that change within the look-back
                changes = each > saved and not part.is_settled(each, state, look_back)
                if changes or (each <= saved and chance.random() < 0.5):
                    part.versions[each] = part.versions.get(each, 0) + chance.randint(0, 2)
            part.bad = set() if is_last else {u for u in units if chance.random() < 0.2}
        with freezegun.freeze_time(now), requests_mock.Mocker() as http:
            http.get(project.url, content=project.answer)
            output = read_stream(
                project.stream, config(**fields), state, expected=ExpectedOutcome.ALLOW_ANY
            )
        dies = not is_last and chance.random() < 0.5
        records, printed = until(output, chance.randint(0, 25) if dies else None)
        arrived |= set(map(project.name, records))
        state = printed or state
        now += chance.randint(1, 8) * step
    return arrived


# More of them were run by hand: RESUMING_ROUNDS=1000.
ROUNDS = int(os.environ.get("RESUMING_ROUNDS", "4"))


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("make", "seed"),
    [(Export, seed) for seed in range(ROUNDS)] + [(Files, seed) for seed in range(ROUNDS // 3)],
)
def test_given_failures_late_files_and_deaths_when_synced_again_then_every_event_has_arrived(
    make: Callable[[], Export], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRBYTE_STAGING_DIRECTORY", str(tmp_path))
    project, chance = make(), random.Random(seed)
    look_back = chance.choice([0, 1, 2, 6])
    fields = {
        "request_time_range": chance.choice([1, 1, 2, 3, 6, 24]),
        "lookback_window_hours": look_back,
        "num_workers": chance.choice([2, 5]),
    }
    arrived = union_of_syncs(project, project.unit, look_back, fields, seed)
    assert project.truth() - arrived == set(), fields


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    "make",
    [
        Series,
        lambda: Counts("active", Counts("new")),
        lambda: Weeks("active", Weeks("new")),
    ],
    ids=["one", "two", "weeks"],
)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_given_failures_restated_days_and_deaths_when_synced_again_then_every_day_is_the_latest(
    seed: int, make: Callable[[], Series]
) -> None:
    project, chance = make(), random.Random(seed)
    look_back = chance.choice([0, 7, 60])  # 60: more than a window
    fields = {"dashboard_lookback_days": look_back, "num_workers": chance.choice([2, 5])}
    # Up to 40 days between two syncs, some windows, and few of them: the budget is real.
    arrived = union_of_syncs(
        project, timedelta(days=5), look_back // project.unit.days + 1, fields, seed
    )
    assert project.truth() - arrived == set(), fields


class Days:
    """A project whose every day of ``average_session_length`` can be read, but for ``bad`` ones."""

    def __init__(self, *bad: str) -> None:
        self.bad, self.asked = bad, list[str]()

    def read(
        self,
        start: str,
        state: Mapping[str, Any] | None = None,
        expected: ExpectedOutcome = ExpectedOutcome.EXPECT_SUCCESS,
    ) -> EntrypointOutput:
        """A sync on 2024-01-10; what it asks for is in ``asked``."""
        self.asked = []

        def answer(request: Any, context: Any) -> Any:
            [day] = request.qs["start"]
            self.asked.append(f"{day[4:6]}-{day[6:]}")
            context.status_code = 400 if self.asked[-1] in self.bad else 200
            xs = [f"{day[:4]}-{day[4:6]}-{day[6:]}"]
            return {"data": {"xValues": xs, "series": [[1]]}}

        settings = config(start_date=f"{start}T00:00:00Z", dashboard_lookback_days=0, num_workers=1)
        with freezegun.freeze_time("2024-01-10T12:00:00Z"), requests_mock.Mocker() as http:
            http.get(Series.url, json=answer)
            return read_stream("average_session_length", settings, state, expected=expected)


def test_when_synced_first_then_the_state_has_what_it_began_with() -> None:
    output = Days().read("2024-01-08")
    assert printed_state(output) == {"date": "2024-01-10", "from": "2024-01-08"}


def test_given_start_date_is_moved_back_when_synced_then_what_lies_between_is_loaded_once() -> None:
    project = Days()
    output = project.read("2024-01-05", {"date": "2024-01-09", "from": "2024-01-08"})
    assert sorted(project.asked) == ["01-05", "01-06", "01-07", "01-09", "01-10"]
    assert [line for line in logged(output) if "moved back" in line] == [
        "Start Date (start_date) was moved back before 2024-01-08, with which the stream "
        "average_session_length began: what lies between is loaded now."
    ]
    state = printed_state(output)
    assert state == {
        **{"date": "2024-01-10", "from": "2024-01-05"},
        "later": [{"from": "2024-01-08", "to": "2024-01-09"}],
    }
    output = project.read("2024-01-05", state)
    assert project.asked == ["01-10"]
    assert printed_state(output) == {"date": "2024-01-10", "from": "2024-01-05"}
    assert not [line for line in logged(output) if "Start Date" in line]


def test_given_a_day_that_fails_in_what_is_loaded_before_when_synced_then_the_rest_stays_done() -> (
    None
):
    project = Days("01-07")
    state: dict[str, Any] = {"date": "2024-01-09", "from": "2024-01-08"}
    output = project.read("2024-01-05", state, ExpectedOutcome.EXPECT_EXCEPTION)
    # A version that knows nothing of `later` reads all from there on.
    assert printed_state(output) == {
        **{"date": "2024-01-06", "from": "2024-01-05"},
        "later": [{"from": "2024-01-08", "to": "2024-01-09"}],
    }
    project.bad = ("01-04",)
    again = project.read("2024-01-03", printed_state(output), ExpectedOutcome.EXPECT_EXCEPTION)
    assert sorted(project.asked) == ["01-03", "01-04", "01-06", "01-07", "01-09", "01-10"]
    assert printed_state(again) == {
        **{"date": "2024-01-03", "from": "2024-01-03"},
        "later": [
            {"from": "2024-01-05", "to": "2024-01-06"},
            {"from": "2024-01-08", "to": "2024-01-09"},
        ],
    }
    project.bad = ()
    last = project.read("2024-01-03", printed_state(again))
    assert printed_state(last)["date"] == "2024-01-10"


@pytest.mark.parametrize(
    ("start", "state", "asked", "began"),
    [
        # It is all there already.
        ("2024-01-08", {"date": "2024-01-09", "from": "2024-01-02"}, ["01-09", "01-10"], "02"),
        # What lies between is not.
        ("2024-01-09", {"date": "2024-01-04", "from": "2024-01-02"}, ["01-09", "01-10"], "09"),
        (
            "2024-01-07",
            {
                **{"date": "2024-01-03", "from": "2024-01-02"},
                "later": [{"from": "2024-01-06", "to": "2024-01-09"}],
            },
            ["01-09", "01-10"],
            "07",
        ),
    ],
)
def test_given_start_date_is_moved_forward_when_synced_then_the_state_has_what_is_there(
    start: str, state: dict[str, Any], asked: list[str], began: str
) -> None:
    project = Days()
    output = project.read(start, state)
    assert sorted(project.asked) == asked
    assert printed_state(output) == {"date": "2024-01-10", "from": f"2024-01-{began}"}


def test_given_a_state_of_an_older_version_when_synced_then_every_sync_warns_of_a_gap() -> None:
    project, state = Days(), {"date": "2024-01-09"}
    for _ in range(2):
        output = project.read("2024-01-08", state)
        assert project.asked[-1] == "01-10"
        state = printed_state(output)
        assert state == {"date": "2024-01-10", "assumed_from": "2024-01-08"}
        assert [line for line in logged(output) if "older version" in line] == [
            "The saved state of the stream average_session_length does not say what it began with: "
            "an older version wrote it. It is taken to hold all from 2024-01-08 on. If Start Date "
            "(start_date) was moved back to that after the first sync, what lies between was not "
            "loaded: refresh the stream in Airbyte."
        ]
    output = project.read("2024-01-06", state)
    assert sorted(project.asked) == ["01-06", "01-07", "01-10"]
    assert printed_state(output)["assumed_from"] == "2024-01-06"


def test_given_start_date_is_moved_back_when_synced_then_each_partition_loads_what_it_lacks() -> (
    None
):
    asked = list[tuple[str, str, str]]()

    def answer(request: Any, _: Any) -> Any:
        [first], [last], [metric] = (request.qs[name] for name in ("start", "end", "m"))
        asked.append((metric, first[4:], last[4:]))
        count = int(last) - int(first) + 1
        days = [f"2024-01-{int(first[6:]) + n:02d}" for n in range(count)]
        return {"data": {"xValues": days, "series": [[1] * count]}}

    def cursors(output: EntrypointOutput) -> list[Any]:
        return [each["cursor"] for each in printed_state(output)["states"]]

    settings = config(start_date="2024-01-08T00:00:00Z", dashboard_lookback_days=0)
    with freezegun.freeze_time("2024-01-10T12:00:00Z"), requests_mock.Mocker() as http:
        http.get(Counts.url, json=answer)
        first = read_stream("daily_user_counts", settings)
        assert cursors(first) == [{"date": "2024-01-10", "from": "2024-01-08"}] * 2
        state = printed_state(first)
        del state["states"][1]
        asked.clear()
        moved = {**settings, "start_date": "2024-01-05T00:00:00Z"}
        second = read_stream("daily_user_counts", moved, state)
    assert sorted(asked) == [
        ("active", "0105", "0107"),
        ("active", "0110", "0110"),
        ("new", "0105", "0110"),
    ]
    later = {"later": [{"from": "2024-01-08", "to": "2024-01-10"}]}
    whole = {"date": "2024-01-10", "from": "2024-01-05"}
    assert cursors(second) == [{**whole, **later}, whole]
    assert len([line for line in logged(second) if "moved back" in line]) == 1


def test_given_start_date_is_moved_back_when_weeks_are_synced_then_they_are_asked_for_whole() -> (
    None
):
    asked = list[tuple[str, str]]()

    def answer(request: Any, _: Any) -> Any:
        [first], [last] = (request.qs[name] for name in ("start", "end"))
        asked.append((first[4:], last[4:]))
        begin, end = (datetime.strptime(day, "%Y%m%d") for day in (first, last))
        weeks = [begin + timedelta(days=7 * n) for n in range((end - begin).days // 7 + 1)]
        xs = [f"{week:%Y-%m-%d}" for week in weeks]
        return {"data": {"xValues": xs, "series": [[1] * len(xs)]}}

    state = {
        "states": [
            {
                "partition": {"metric": metric},
                "cursor": {"date": "2024-02-05", "from": "2024-01-29"},
            }
            for metric in ("active", "new")
        ]
    }
    settings = config(start_date="2024-01-17T00:00:00Z", dashboard_lookback_days=0)
    with freezegun.freeze_time("2024-02-07T12:00:00Z"), requests_mock.Mocker() as http:
        http.get(Counts.url, json=answer)
        output = read_stream("weekly_user_counts", settings, state)
    assert sorted(asked) == [("0115", "0128")] * 2 + [("0205", "0207")] * 2
    assert [each["cursor"]["from"] for each in printed_state(output)["states"]] == [
        "2024-01-15"
    ] * 2


@pytest.mark.parametrize(
    ("began", "reason"),
    [
        ({"from": None}, "date is None, where a time such as 2024-01-31 should be"),
        ({"from": "0001-01-01"}, "date is '0001-01-01', where a time such as 2024-01-31 should be"),
        (
            {"from": "2024-01-08", "later": [5]},
            "it is {'date': '2024-01-09', 'from': '2024-01-08', 'later': [5]}",
        ),
    ],
)
def test_given_a_beginning_that_can_not_be_read_when_synced_then_the_state_is_refused(
    began: dict[str, Any], reason: str
) -> None:
    output = Days().read(
        "2024-01-08", {"date": "2024-01-09", **began}, ExpectedOutcome.EXPECT_EXCEPTION
    )
    assert first_error(output)[0] == (
        f"The saved state of the stream average_session_length can't be read: {reason}. Clear the "
        "stream's data in Airbyte, or mend its state."
    )


@pytest.mark.usefixtures("no_waiting")
def test_given_many_partitions_when_read_then_states_follow_their_rows() -> None:
    """Those of a few at once; those of many in a number of bytes that does not grow with them."""

    def answer(request: Any, _: Any) -> Any:
        return {"data": {"xValues": ["2024-01-10"], "series": [[1]]}}

    sizes = {}
    settings = config(start_date="2024-01-10T00:00:00Z", num_workers=1)
    for count in (3, 150):
        listed = [{"id": n, "value": f"event {n}"} for n in range(count)]
        with freezegun.freeze_time("2024-01-10T12:00:00Z"), requests_mock.Mocker() as http:
            http.get("https://amplitude.com/api/2/events/list", json={"data": listed})
            http.get("https://amplitude.com/api/2/events/segmentation", json=answer)
            output = read_stream("event_counts", settings)
        assert output.errors == []
        done = [
            len([s for s in until(output, n)[1]["states"] if s["cursor"]["date"] == "2024-01-10"])
            for n, message in enumerate(output.records_and_state_messages, start=1)
            if message.state
        ]
        assert done == sorted(done)
        sizes[count] = done
    # The last one is that of the end.
    assert sizes[3] == [1, 2, 3, 4, 5, 6, 6]
    # Partitions come into being while others are read.
    assert len(sizes[150]) < 2 * 150 + 1
    assert sizes[150][-1] == 300


def test_given_one_state_for_all_without_a_cursor_when_synced_then_they_are_read_anew() -> None:
    state = {"use_global_cursor": True, "lookback_window": 12, "parent_state": {}}

    def answer(request: Any, _: Any) -> Any:
        return {"data": {"xValues": ["2024-01-10"], "series": [[1]]}}

    settings = config(start_date="2024-01-10T00:00:00Z")
    with freezegun.freeze_time("2024-01-10T12:00:00Z"), requests_mock.Mocker() as http:
        http.get(Counts.url, json=answer)
        output = read_stream("daily_user_counts", settings, state)
    assert output.errors == []
    assert len(records(output)) == 2
    assert [line for line in logged(output) if "read anew" in line] == [
        "The saved state of the stream daily_user_counts is one for all of its partitions, of "
        "which there were more than 10,000. All are read anew."
    ]


NEW = {"metric": "new"}


@pytest.mark.parametrize(
    ("partition", "cursor"),
    [
        (NEW, None),
        (NEW, "2024-01-09"),
        (NEW, ["2024-01-09"]),
        (None, {"date": "2024-01-09"}),
        ({"metric": ["new"]}, {"date": "2024-01-09"}),
        ({"metric": None}, {"date": "2024-01-09"}),
        ("new", {"date": "2024-01-09"}),
    ],
)
def test_given_a_state_of_no_partition_when_synced_then_its_own_stream_ends_and_others_are_read(
    partition: Any, cursor: Any
) -> None:
    state = {"states": [{"partition": partition, "cursor": cursor}]}
    with requests_mock.Mocker() as http:
        http.get("https://amplitude.com/api/2/events/list", json={"data": [{"id": 1}]})
        output = read_stream(
            "daily_user_counts",
            config(),
            state,
            expected=ExpectedOutcome.EXPECT_EXCEPTION,
            beside=["events_list"],
        )
    assert records(output) == [{"id": 1}]
    assert output.errors[0].trace.error.stream_descriptor.name == "daily_user_counts"  # type: ignore[union-attr]
    assert first_error(output)[0] == (
        "The saved state of the stream daily_user_counts can't be read: it has a partition "
        f"{partition} with a cursor {cursor}. Clear the stream's data in Airbyte, or mend its "
        "state."
    )
    # The state that can't be read is not replaced.
    names = [m.state.stream.stream_descriptor.name for m in output.state_messages]  # type: ignore[union-attr]
    assert "daily_user_counts" not in names


def test_given_an_unreadable_state_of_another_stream_when_synced_then_nothing_is_said() -> None:
    catalog = CatalogBuilder().with_stream("events_list", SyncMode.full_refresh).build()
    states = StateBuilder().with_stream_state("events", {"date": "someday"}).build()
    source = SourceAmplitude(catalog=catalog, config=config(), state=states)
    with requests_mock.Mocker() as http:
        http.get("https://amplitude.com/api/2/events/list", json={"data": [{"id": 1}]})
        output = read(source, config(), catalog, states)
    assert records(output) == [{"id": 1}]
    assert output.errors == []
