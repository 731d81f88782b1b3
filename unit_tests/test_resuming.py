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
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from unit_tests.helpers import archive, config, json_lines, read_stream

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
            for each in (state or {}).get("ahead", [])
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
