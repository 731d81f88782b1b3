"""The installed command against the sandbox: everything arrives, and what fails says what to do."""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests_mock
from airbyte_cdk.models import FailureType
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from sandbox import Fault, Project, Sandbox
from sandbox.project import bucket
from source_amplitude import components
from source_amplitude.run import _messages
from unit_tests.helpers import config, final_state, first_error, read_stream, records
from unit_tests.installed import WITHOUT_COSTS, Connector, configured, discovered_streams

pytestmark = pytest.mark.usefixtures("within_an_hour")

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def now() -> datetime:
    return datetime.now(timezone.utc)


def hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def sandbox(within_an_hour: None) -> Iterator[Sandbox]:
    with Sandbox(Project(events_per_hour=20, first_hour=hour(now()) - 30 * HOUR)) as running:
        yield running


def rewritten(event: dict[str, Any]) -> dict[str, Any]:
    """An exported event as the connector delivers it; the CDK leaves nulls out of records."""
    record = {
        name: f"{value.replace(' ', 'T')}+00:00" if name.endswith("_time") else value
        for name, value in event.items()
        if value is not None
    }
    if ids := record.get("amplitude_attribution_ids"):
        record["amplitude_attribution_ids"] = json.dumps(ids, separators=(",", ":"))
    return record


def events_of(sandbox: Sandbox) -> list[dict[str, Any]]:
    start = sandbox.project.first_hour
    assert start
    exportable = sandbox.exportable_hours(start, now())
    return [rewritten(event) for hour in exportable for event in sandbox.project.events(hour)]


def by(key: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: str(record[key]))


def in_order(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return sorted(map(dict, records), key=lambda record: json.dumps(record, sort_keys=True))


def without_nulls(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if v is not None} for record in records]


def named(category: dict[str, Any]) -> dict[str, Any]:
    """A category of annotations, which has its name under two keys."""
    return {**category, "name": category["category"]}


def in_utc(annotation: dict[str, Any]) -> dict[str, str]:
    return {
        name: datetime.fromisoformat(annotation[name]).astimezone(timezone.utc).isoformat()
        for name in ("start", "end")
        if name in annotation
    }


def truth(sandbox: Sandbox) -> dict[str, list[dict[str, Any]]]:
    """The records of every stream that a sync from the project's first hour on brings now."""
    project, today, start = sandbox.project, sandbox.today, sandbox.project.first_hour
    assert start
    days = [start.date() + timedelta(days=n) for n in range((today - start.date()).days + 1)]
    jobs = [
        {**job, "app": int(job["app"])}
        for job in project.deletion_jobs(days[0], today + timedelta(days=30), today)
    ]
    tables = project.lookup_tables()
    return {
        "events": events_of(sandbox),
        "active_users": [
            {"date": f"{day}", "statistics": project.active_users(day)} for day in days
        ],
        "daily_user_counts": user_counts(sandbox, days, 1),
        "weekly_user_counts": user_counts(sandbox, days, 7),
        "monthly_user_counts": user_counts(sandbox, days, 30),
        "average_session_length": [
            {"date": f"{day}", "length": project.average_session_length(day)} for day in days
        ],
        "sessions_per_user": [
            {"date": f"{day}", "sessions": project.sessions_per_user(day)} for day in days
        ],
        "session_lengths": [
            {
                "date": f"{day}",
                "bucket": label,
                "from_seconds": float(label.split("-")[0].strip("s")),
                "to_seconds": float(label.split("-")[1].strip("s")),
                "sessions": count,
            }
            for day in days
            for label, count in project.session_lengths(day).items()
        ],
        "retention": [
            {
                "cohort_date": f"{day}",
                "day_number": number,
                "users": cell["count"],
                "cohort_size": cell["outof"],
                "is_complete": not cell["incomplete"],
            }
            for day in days
            for number, cell in enumerate(sandbox.retention(day)[1:])
        ],
        "revenue_ltv": [
            {
                "cohort_date": f"{day}",
                "day_number": number,
                "revenue": cohort[f"r{number}d"],
                "users": cohort["count"],
                "paying_users": cohort["paid"],
                "total_amount": cohort["total_amount"],
                "is_complete": day + timedelta(days=number - 1) < today,
            }
            for day in days
            for cohort in [project.revenue_ltv(day, today)]
            for number in range(1, min(90, (today - day).days + 1) + 1)
        ],
        "event_counts": [
            {
                "date": f"{day}",
                "event_type": event["value"],
                "metric": metric,
                "value": project.count_events(metric, [day], event["value"]),
            }
            for day in days
            for event in project.events_list()
            for metric in ("totals", "uniques")
        ],
        "annotations": [
            {
                **annotation,
                **in_utc(annotation),
                "date": annotation["start"][:10],
                **({"category": named(c)} if (c := annotation.get("category")) else {}),
            }
            for annotation in without_nulls(project.annotations())
        ],
        "annotation_categories": [*map(named, project.annotation_categories())],
        "cohorts": without_nulls(sandbox.cohorts()),
        "cohort_members": cohort_members(sandbox),
        "events_list": without_nulls(project.events_list()),
        "channel_classifiers": without_nulls(project.channel_classifiers()),
        "event_categories": project.event_categories(),
        "event_types": without_nulls(project.event_types()),
        "event_properties": without_nulls(
            {**each, "event_type": each["event_type"] or ""} for each in project.event_properties()
        ),
        "user_properties": without_nulls(project.user_properties()),
        "group_properties": without_nulls(
            {**each, "group_type": each["group_type"] or ""} for each in project.group_properties()
        ),
        "session_replays": [
            {**replay, **{name: f"{replay[name]}Z" for name in ("start_time", "end_time")}}
            for replay in sandbox.iter_session_replays(start)
        ],
        "lookup_tables": without_nulls(tables),
        "lookup_table_rows": [
            {"table": name, "key": row[key], "row_number": number, "row": row}
            for name, key in ((table["name"], table["keyColumnHeader"]) for table in tables)
            for number, row in enumerate(project.lookup_rows(name), start=1)
        ],
        "deletion_jobs": without_nulls(jobs),
        "deleted_users": without_nulls(
            {**{name: value for name, value in job.items() if name != "amplitude_ids"}, **user}
            for job in jobs
            for user in job["amplitude_ids"]
        ),
    }


def cohort_members(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The members of all cohorts of users, as of when they were computed last."""
    return without_nulls(
        {
            "cohort_id": cohort["id"],
            "amplitude_id": member["amplitude_id"],
            "user_id": member["user_id"],
            "computed_at": (
                f"{datetime.fromtimestamp(cohort['lastComputed'], timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
            ),
        }
        for cohort in sandbox.cohorts()
        if cohort["size"] and not cohort["archived"] and is_of_users(cohort)
        for member in sandbox.project.cohort_members(cohort["id"], cohort["lastComputed"])
    )


def is_of_users(cohort: dict[str, Any]) -> bool:
    return bool(cohort["definition"]["countGroup"]["name"] == "User")


def user_counts(
    sandbox: Sandbox, days: list[date], interval: int, by: str | None = None
) -> list[dict[str, Any]]:
    """Active and new users of each day (1), week (7) or month (30) that one of `days` lies in."""
    return [
        {
            "date": f"{day}",
            "metric": metric,
            "segment": segment,
            "users": users,
            "is_complete": bucket(day, interval)[-1] < sandbox.today,
        }
        for day in dict.fromkeys(bucket(each, interval)[0] for each in days)
        for metric in ("active", "new")
        for segment, users in sandbox.count_users(metric, day, interval, by).items()
    ]


def assert_delivered(
    delivered: Iterable[Mapping[str, Any]], expected: Iterable[Mapping[str, Any]], stream: str
) -> None:
    if stream == "session_replays":  # one that starts with a window also ends the one before
        delivered = {replay["replay_id"]: replay for replay in delivered}.values()
    assert in_order(delivered) == in_order(expected), stream


def moment_of(value: str) -> datetime:
    """A cursor value, be it a day or a time."""
    moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class BriefProject(Project):
    """A project of many users, most of whose events are left out to save time."""

    def event_count(self, hour: datetime) -> int:
        return min(2, super().event_count(hour))


# What a stream reads again: so long before its state.
READ_AGAIN = {
    "events": 5 * HOUR,
    **dict.fromkeys(
        ("active_users", "average_session_length", "sessions_per_user", "session_lengths"), 7 * DAY
    ),
    "daily_user_counts": 7 * DAY,
    "weekly_user_counts": 13 * DAY,
    "monthly_user_counts": 37 * DAY,
    "event_counts": 7 * DAY,
    "retention": 37 * DAY,
    "revenue_ltv": 97 * DAY,
    "session_replays": DAY - timedelta(seconds=1),
    "deletion_jobs": 59 * DAY,
    "deleted_users": 59 * DAY,
}


class TestRead:
    def test_given_a_project_when_read_twice_then_all_arrives_and_then_what_may_have_changed(
        self, tmp_path: Path
    ) -> None:
        moment = now()
        # In so many days, two months begin.
        project = BriefProject(events_per_hour=200, first_hour=hour(moment) - 65 * DAY)
        # On a machine that is busy, two requests of a second may arrive in the next one.
        limits: dict[str, Any] = {
            **dict.fromkeys(("cost_limits", "taxonomy_limits", "deletion_limits"), ()),
            "concurrent_cost": 10_000,
        }
        with Sandbox(project, clock=lambda: moment, **limits) as sandbox:
            connector = Connector(tmp_path, sandbox, WITHOUT_COSTS)
            first = connector.read()
            before = truth(sandbox)
            # Every figure is another now.
            sandbox.project = replace(project, seed=8)
            second = connector.read(state=first.states())
            after = truth(sandbox)
            # A job is made, and a large file is led to.
            assert {request.status for request in sandbox.requests} == {200, 202, 302}
        assert [run.exit_code for run in (first, second)] == [0, 0], second.output[-2000:]
        streams = [s["name"] for s in discovered_streams() if not s["is_file_based"]]
        assert sorted(before) == sorted(streams)
        cursors = {s["name"]: s.get("default_cursor_field", [""])[0] for s in discovered_streams()}
        for stream in streams:
            assert_delivered(first.records(stream), before[stream], stream)
            # No cohort was computed anew.
            restated = after[stream] if stream != "cohort_members" else []
            if stream in READ_AGAIN:
                cursor = cursors[stream]
                state = max(moment_of(record[cursor]) for record in before[stream])
                floor = (hour(state) if stream == "events" else state) - READ_AGAIN[stream]
                restated = [r for r in restated if moment_of(r[cursor]) >= floor]
                assert in_order(restated) != in_order(before[stream])
            assert_delivered(second.records(stream), restated, stream)

    def test_given_the_state_of_a_sync_when_read_then_only_what_is_new_is_moved(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        connector = Connector(tmp_path, sandbox, lookback_window_hours=1, dashboard_lookback_days=0)
        sandbox.export_delay = 6 * HOUR
        first = connector.read("events", "active_users")
        last_exported = hour(now()) - 7 * HOUR
        assert first.state("events") == {"server_upload_time": f"{last_exported:%Y%m%dT%H}"}
        assert first.state("active_users") == {"date": now().date().isoformat()}

        sandbox.export_delay = 2 * HOUR
        second = connector.read("events", "active_users", state=first.states())
        known = {event["uuid"] for event in first.records("events")}
        read_again = [event for event in second.records("events") if event["uuid"] in known]
        assert {event["server_upload_time"][:13] for event in read_again} == {
            f"{last_exported:%Y-%m-%dT%H}"
        }
        union = {event["uuid"]: event for run in (first, second) for event in run.records("events")}
        assert by("uuid", list(union.values())) == by("uuid", events_of(sandbox))
        assert [record["date"] for record in second.records("active_users")] == [
            now().date().isoformat()
        ]
        assert second.state("events") == {
            "server_upload_time": f"{hour(now()) - 3 * HOUR:%Y%m%dT%H}"
        }

    def test_given_a_project_without_data_when_checked_and_read_then_nothing_fails(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(events_per_hour=0, has_country=False)) as sandbox:
            connector = Connector(tmp_path, sandbox, active_users_group_by_country=False)
            assert connector.check().connection_status() == {"status": "SUCCEEDED"}
            run = connector.read("events")
            assert run.exit_code == 0, run.output[-2000:]
            assert run.records("events") == []

    def test_given_quiet_days_and_a_quiet_event_type_when_read_then_every_state_moves_past_them(
        self, tmp_path: Path
    ) -> None:
        moment, quiet = now(), "Playlist Shared"
        days = [(moment - n * DAY).date() for n in range(14, -1, -1)]
        project = BriefProject(
            events_per_hour=200,
            first_hour=hour(moment) - 14 * DAY,
            quiet_days=frozenset(days[3:5]),
            quiet_weeks=frozenset({(quiet, days[6])}),
        )
        with Sandbox(project, clock=lambda: moment, cost_limits=(), concurrent_cost=10_000) as box:
            run = Connector(
                tmp_path, box, WITHOUT_COSTS, active_users_group_by_country=False
            ).read()
        assert run.exit_code == 0, run.output[-2000:]
        assert run.errors() == {}
        # Nothing was grouped: nobody is a 0, and nobody's sessions have no lengths.
        users = {r["date"]: r["statistics"]["0"] for r in run.records("active_users")}
        assert [day for day in days if users[f"{day}"] == 0] == days[3:5]
        lengths = {record["date"] for record in run.records("session_lengths")}
        assert [day for day in days if f"{day}" not in lengths] == days[3:5]
        counts = [r for r in run.records("event_counts") if r["event_type"] == quiet]
        zeros = {r["date"] for r in counts if not r["value"]}
        assert zeros == {f"{day}" for day in {*days[3:5], *days[6:13]}}
        for stream in ("active_users", "sessions_per_user", "session_lengths"):
            assert run.state(stream) == {"date": f"{days[-1]}"}
        for stream in ("retention", "revenue_ltv"):
            assert run.state(stream) == {"cohort_date": f"{days[-1]}"}
        for stream in ("daily_user_counts", "event_counts"):
            cursors = [each["cursor"] for each in run.state(stream)["states"]]
            assert cursors == [{"date": f"{days[-1]}"}] * len(cursors) != []

    def test_given_a_project_where_nothing_ever_happened_when_read_then_no_stream_fails(
        self, tmp_path: Path
    ) -> None:
        moment = now()
        project = Project(events_per_hour=0)
        with Sandbox(project, clock=lambda: moment, cost_limits=(), concurrent_cost=10_000) as box:
            run = Connector(tmp_path, box, WITHOUT_COSTS).read()
        assert run.exit_code == 0, run.output[-2000:]
        assert run.errors() == {}
        assert run.records("events") == run.records("active_users") == []
        assert {r["users"] for r in run.records("daily_user_counts")} == {0}

    def test_given_a_project_in_the_eu_when_read_then_the_eu_host_is_asked(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(events_per_hour=5), eu=True) as sandbox:
            run = Connector(tmp_path, sandbox).read("cohorts")
            assert run.records("cohorts") == without_nulls(sandbox.project.cohorts())
            assert {r.host for r in sandbox.requests} == {"analytics.eu.amplitude.com"}

    def test_given_a_project_far_west_when_read_then_no_day_that_has_not_begun_is_asked_for(
        self, tmp_path: Path
    ) -> None:
        zone = "Pacific/Pago_Pago"
        with Sandbox(Project(), project_timezone=zone) as sandbox:
            run = Connector(tmp_path, sandbox, project_timezone=zone).read("average_session_length")
            today = (now() - 11 * HOUR).date()
            assert run.state("average_session_length") == {"date": today.isoformat()}
            asked = [r.params for r in sandbox.requests if "sessions" in r.path]
            assert max(params["end"] for params in asked) == f"{today:%Y%m%d}"

    def test_given_five_workers_when_read_then_no_more_than_five_requests_are_in_flight(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(events_per_hour=5, first_hour=hour(now()) - 40 * HOUR)) as sandbox:
            sandbox.inject(Fault(path="/api/2/export", times=None, delay=0.2))
            run = Connector(tmp_path, sandbox, num_workers=5, request_time_range=2).read("events")
            assert by("uuid", run.records("events")) == by("uuid", events_of(sandbox))
            assert 1 < sandbox.peak_concurrency <= 5

    def test_given_an_archive_over_the_size_limit_when_read_then_its_halves_arrive(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        hours = [hour(now()) - n * HOUR for n in range(3, 9)]
        sandbox.size_limit = sandbox.project.archive_bytes(hours)
        run = Connector(tmp_path, sandbox).read("events")
        assert by("uuid", run.records("events")) == by("uuid", events_of(sandbox))
        assert 400 in {request.status for request in sandbox.requests}

    def test_given_a_budget_when_read_then_it_is_kept(self, tmp_path: Path) -> None:
        start = f"{now() - timedelta(days=128):%Y-%m-%dT00:00:00Z}"
        with Sandbox(Project(), cost_limits=[(1_000, 300.0)]) as sandbox:
            run = Connector(tmp_path, sandbox, start_date=start).read("active_users")
            assert len(run.records("active_users")) == 129
            assert {request.status for request in sandbox.requests} == {200}
            assert max(request.cost for request in sandbox.requests) == 150

    def test_when_read_then_no_temporary_file_is_left(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        Connector(tmp_path, sandbox).read("events")
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_given_debug_logs_when_read_then_no_key_is_printed(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        connector = Connector(tmp_path, sandbox)
        run = connector.run("read", "--debug", *connector.read_options("events", "cohorts"))
        assert "Authorization" in run.output
        assert run.exit_code == 0


@pytest.fixture
def in_this_process(within_an_hour: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox that this process is sent to, and that it asks without waiting for the budget."""
    moment = now()
    project = Project(events_per_hour=20, first_hour=hour(moment) - 45 * DAY)
    limits: dict[str, Any] = {"cost_limits": (), "concurrent_cost": 10_000}
    with Sandbox(project, clock=lambda: moment, **limits) as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(components, "price", lambda *_: 1)
        yield running


def records_by_stream(output: EntrypointOutput) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for message in output.records:
        assert message.record
        found.setdefault(message.record.stream, []).append(message.record.data)
    return found


class TestUserCountsByProperty:
    STREAMS: ClassVar = {"daily_user_counts": 1, "weekly_user_counts": 7, "monthly_user_counts": 30}

    @pytest.mark.parametrize("by", ["platform", "country", "gp:plan"])
    def test_given_a_property_when_read_then_each_value_is_a_segment(
        self, in_this_process: Sandbox, by: str
    ) -> None:
        settings = in_this_process.config(user_counts_group_by=by)
        first, *others = self.STREAMS
        found = records_by_stream(read_stream(first, settings, beside=others))
        today, start = in_this_process.today, in_this_process.project.first_hour
        assert start
        days = [start.date() + n * DAY for n in range((today - start.date()).days + 1)]
        for stream, interval in self.STREAMS.items():
            expected = user_counts(in_this_process, days, interval, by)
            assert len({record["segment"] for record in expected}) > 2
            assert_delivered(found[stream], expected, stream)

    def test_given_a_property_that_the_project_has_not_when_read_then_the_setting_is_named(
        self, in_this_process: Sandbox
    ) -> None:
        settings = in_this_process.config(user_counts_group_by="gp:shoe_size")
        output = read_stream(
            "daily_user_counts",
            settings,
            expected=ExpectedOutcome.EXPECT_EXCEPTION,
            beside=["active_users"],
        )
        message, failure_type = first_error(output)
        assert failure_type == FailureType.config_error
        assert "HTTP 400 (Invalid chart definition: Invalid user property gp:shoe_size" in message
        assert "change Group User Counts by" in message
        active_users = truth(in_this_process)["active_users"]
        assert_delivered(records(output), active_users, "active_users")


class TestCohortMembers:
    LARGE: ClassVar = "z5y4n6bv"

    def test_given_a_download_that_breaks_off_when_read_then_it_is_taken_up_without_a_new_job(
        self, in_this_process: Sandbox, no_waiting: None
    ) -> None:
        for path, part in (("/exports/*", 5_000), ("*/file", 200)):
            in_this_process.inject(Fault(path=path, drop_after=part))
        output = read_stream("cohort_members", in_this_process.config())
        assert_delivered(records(output), cohort_members(in_this_process), "cohort_members")
        assert len(in_this_process.cohort_jobs.jobs) == 3
        asked = [r for r in in_this_process.requests if r.path.startswith("/exports/")]
        assert [request.has_credentials for request in asked] == [False, False]

    def test_given_a_cohort_that_was_computed_anew_when_read_then_its_members_now_are_the_latest(
        self, in_this_process: Sandbox
    ) -> None:
        settings = in_this_process.config(cohort_member_properties=["plan", "user_id"])
        first = read_stream("cohort_members", settings)
        in_this_process.compute_cohort(self.LARGE, 1_700_000_000)
        second = read_stream("cohort_members", settings, final_state(first))
        assert {record["cohort_id"] for record in records(second)} == {self.LARGE}
        of_both = (r for output in (first, second) for r in records(output))
        rows = {(r["cohort_id"], r["amplitude_id"]): r for r in of_both}
        latest: dict[str, str] = {}
        for (cohort_id, _), row in rows.items():
            latest[cohort_id] = max(latest.get(cohort_id, ""), row["computed_at"])
        now_members = [
            {k: v for k, v in row.items() if k != "properties"}
            for (cohort_id, _), row in rows.items()
            if row["computed_at"] == latest[cohort_id]
        ]
        assert len(now_members) < len(rows)
        assert_delivered(now_members, cohort_members(in_this_process), "cohort_members")
        truth_of_properties = {
            member["amplitude_id"]: member["properties"]
            for member in in_this_process.project.cohort_members(
                self.LARGE, 1_700_000_000, ["plan", "user_id"]
            )
        }
        assert {r["amplitude_id"]: r["properties"] for r in records(second)} == truth_of_properties


@dataclass(frozen=True)
class GrowingProject(Project):
    """A project of which some event types have not come yet."""

    unseen: set[str] = field(default_factory=set)

    def events_list(self) -> list[dict[str, Any]]:
        return [event for event in super().events_list() if event["value"] not in self.unseen]

    def __hash__(self) -> int:
        return id(self)


class TestEventCounts:
    @pytest.fixture(autouse=True)
    def _days(self, in_this_process: Sandbox) -> None:
        """Three windows of days."""
        first_hour = hour(now()) - 65 * DAY
        in_this_process.project = GrowingProject(events_per_hour=20, first_hour=first_hour)

    def test_given_a_new_event_type_when_read_again_then_it_comes_from_start_date_on(
        self, in_this_process: Sandbox
    ) -> None:
        new, project = "Song Played 🎧", in_this_process.project
        assert isinstance(project, GrowingProject)
        project.unseen.add(new)
        settings = in_this_process.config(dashboard_lookback_days=0)
        first = read_stream("event_counts", settings)
        assert_delivered(records(first), truth(in_this_process)["event_counts"], "event_counts")
        project.unseen.clear()
        second = read_stream("event_counts", settings, final_state(first))
        expected = truth(in_this_process)["event_counts"]
        today = f"{in_this_process.today}"
        assert_delivered(
            records(second),
            [r for r in expected if r["event_type"] == new or r["date"] == today],
            "event_counts",
        )

    def test_given_an_event_type_that_fails_when_read_again_then_only_its_gap_is_made_good(
        self, in_this_process: Sandbox
    ) -> None:
        failing, today = "Checkout Completed", in_this_process.today
        gap = f"{today - 10 * DAY:%Y%m%d}"
        in_this_process.inject(
            Fault(
                "/api/2/events/segmentation",
                body=b'{"data": {"series": [5]}}',
                when=lambda params: (
                    failing in params["e"]
                    and params["m"] == "totals"
                    and params["start"] <= gap <= params["end"]
                ),
            )
        )
        settings = in_this_process.config(dashboard_lookback_days=0)
        first = read_stream("event_counts", settings, expected=ExpectedOutcome.EXPECT_EXCEPTION)
        message, failure_type = first_error(first)
        assert failure_type == FailureType.system_error
        assert "answer to /api/2/events/segmentation for" in message
        expected = truth(in_this_process)["event_counts"]
        lost = in_order(expected)
        for record in in_order(records(first)):
            lost.remove(record)
        assert {(record["event_type"], record["metric"]) for record in lost} == {
            (failing, "totals")
        }
        assert 0 < len(lost) <= 30
        second = in_order(records(read_stream("event_counts", settings, final_state(first))))
        others = [r for r in second if (r["event_type"], r["metric"]) != (failing, "totals")]
        assert {record["date"] for record in others} == {f"{today}"}
        assert all(record in second for record in lost)
        assert all(record in expected for record in second)


def test_when_discovered_then_the_streams_are_those_that_other_tests_read(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    run = Connector(tmp_path, sandbox).run("discover")
    [found] = [m["catalog"]["streams"] for m in run.messages if m["type"] == "CATALOG"]
    assert found == discovered_streams()
    assert sandbox.requests == []


class TestCheck:
    def test_given_valid_keys_when_checked_then_it_succeeds_at_a_cost_of_one(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        assert Connector(tmp_path, sandbox).check().connection_status() == {"status": "SUCCEEDED"}
        assert [request.cost for request in sandbox.requests] == [1]

    def test_given_a_wrong_key_when_checked_then_keys_and_region_are_named(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        run = Connector(tmp_path, sandbox, secret_key="0" * 32).check()
        status = run.connection_status()
        assert status["status"] == "FAILED"
        assert "HTTP 403 (Unspecified Error: Invalid API Key)" in status["message"]
        assert "Copy both keys anew" in status["message"]

    def test_given_the_wrong_region_when_checked_then_the_other_one_is_named(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        run = Connector(tmp_path, sandbox, data_region="EU Residency Server").check()
        message = run.connection_status()["message"]
        assert "refused on the EU Residency Server" in message
        assert "set Data Region to Standard Server" in message

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("start_date", "2021", "Start Date (start_date) is not valid: '2021'"),
            ("start_date", "2130-01-01", "Start Date (start_date) is not valid: '2130-01-01' lies"),
            ("data_region", "Mars", "Data Region (data_region) is not valid: 'Mars'"),
            ("project_timezone", "Mars/X", "Project Time Zone (project_timezone) is not valid"),
            ("request_time_range", 0, "Hours per Export Request (request_time_range) is not"),
            ("num_workers", 0, "Number of Concurrent Workers (num_workers) is not valid: 0"),
            ("active_users_group_by_country", "no", "Active Users Group by Country"),
            ("api_key", 12345678901234567890, "API Key (api_key) is not valid"),
            ("secret_key", None, "Secret Key (secret_key) is missing."),
        ],
    )
    def test_given_a_bad_value_when_checked_then_the_field_is_named_and_nothing_is_asked(
        self, sandbox: Sandbox, tmp_path: Path, field: str, value: object, expected: str
    ) -> None:
        connector = Connector(tmp_path, sandbox)
        connector.config[field] = value
        run = connector.check()
        status = run.connection_status()
        assert status["status"] == "FAILED"
        assert status["message"].startswith(expected)
        assert sandbox.requests == []
        assert run.exit_code == 0

    def test_given_a_start_date_in_the_future_when_read_then_it_is_named_and_nothing_is_asked(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        connector = Connector(tmp_path, sandbox)
        options = connector.read_options()
        connector.config["start_date"] = "2130-01-01"
        run = connector.run("read", *options)
        error = run.first_error()
        assert run.exit_code == 1
        assert error["failure_type"] == "config_error"
        assert error["message"] == (
            "Start Date (start_date) is not valid: '2130-01-01' lies in the future, by the clock "
            "of UTC."
        )
        assert sandbox.requests == []


def test_given_a_refusal_in_the_middle_of_a_sync_when_read_then_what_was_delivered_stands(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    last = f"{hour(now()) - 3 * HOUR:%Y%m%dT%H}"
    sandbox.inject(
        Fault(
            path="/api/2/export",
            times=None,
            status=403,
            body=b"Invalid API Key",
            when=lambda params: params["end"] == last,
        )
    )
    run = Connector(tmp_path, sandbox, request_time_range=12).read("events")
    error = run.first_error()
    assert run.exit_code == 1
    assert error["failure_type"] == "config_error"
    assert "HTTP 403 (Invalid API Key)" in error["message"]
    delivered = {record["server_upload_time"][:13] for record in run.records("events")}
    state = datetime.strptime(run.state("events")["server_upload_time"], "%Y%m%dT%H")
    assert f"{state:%Y-%m-%dT%H}" == max(delivered)


@pytest.mark.parametrize("form", ["STREAM", "GLOBAL"])
def test_given_a_saved_state_in_either_form_when_read_then_it_is_taken_up(
    sandbox: Sandbox, tmp_path: Path, form: str
) -> None:
    connector = Connector(tmp_path, sandbox, dashboard_lookback_days=0)
    state = {
        "stream_descriptor": {"name": "average_session_length"},
        "stream_state": {"date": now().date().isoformat()},
    }
    saved = {"stream": state} if form == "STREAM" else {"global": {"stream_states": [state]}}
    run = connector.read("average_session_length", state=[{"type": form, **saved}])
    assert run.exit_code == 0, run.output[-2000:]
    assert [record["date"] for record in run.records("average_session_length")] == [
        now().date().isoformat()
    ]


def test_given_a_state_of_the_form_before_types_when_read_then_the_error_says_so(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    connector = Connector(tmp_path, sandbox)
    options = connector.read_options("average_session_length")
    legacy = tmp_path / "legacy.json"
    legacy.write_text(json.dumps({"average_session_length": {"date": "2024-01-01"}}))
    run = connector.run("read", *options, "--state", str(legacy))
    assert run.exit_code == 1
    assert run.first_error()["message"] == (
        "Config, catalog or state can't be read (SchemaValidationError: Schema validation failed)."
    )
    assert [line for line in run.output.splitlines() if not line.startswith('{"type":')] == []


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_given_a_locale_that_is_not_utf_8_when_read_then_files_and_output_are_all_the_same(
    sandbox: Sandbox, tmp_path: Path, locale: dict[str, str]
) -> None:
    env = {**locale, "PYTHONCOERCECLOCALE": "0"}
    connector = Connector(tmp_path, sandbox, env=env, project_name="Zürich 🎧")
    options = connector.read_options("events_list")
    for name in ("catalog", "config"):
        path = tmp_path / f"{name}.json"
        content = connector.config if name == "config" else json.loads(path.read_text())
        path.write_text(f"\ufeff{json.dumps(content, ensure_ascii=False)}", encoding="utf-8")
    options = [*options, "--config", str(tmp_path / "config.json")]
    run = connector.run("read", *options)
    assert run.exit_code == 0, run.output[-2000:]
    assert {record["project_name"] for record in run.records("events_list")} == {"Zürich 🎧"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no JSON (Expecting value: line 1 column 1 (char 0))"),
        (
            b"\xff",
            "it is no JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid "
            "start byte)",
        ),
        (b"null", "it is no JSON object"),
        (b"[]", "it is no JSON object"),
    ],
)
def test_given_a_file_that_is_no_config_when_checked_then_there_is_a_status(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    messages = [json.loads(line) for line in _messages(["check", "--config", str(path)])]
    assert [m["connectionStatus"] for m in messages if m["type"] == "CONNECTION_STATUS"] == [
        {"status": "FAILED", "message": f"The config can't be read: {reason}."}
    ]


def test_given_an_empty_config_when_checked_then_there_is_a_status(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("\ufeff{}", encoding="utf-8")
    messages = [json.loads(line) for line in _messages(["check", "--config", str(path)])]
    [status] = [m["connectionStatus"] for m in messages if m["type"] == "CONNECTION_STATUS"]
    assert status["status"] == "FAILED"


def test_given_pipes_for_files_when_read_then_each_is_read_once(tmp_path: Path) -> None:
    """As ``--config <(...)`` of a shell gives them; within them, the config is all that is used."""
    opened = []
    for name, content in (("config", config()), ("catalog", {"streams": []}), ("state", [])):
        os.mkfifo(tmp_path / name)
        opened += [f"--{name}", str(tmp_path / name)]
        text = json.dumps(content)
        threading.Thread(target=(tmp_path / name).write_text, args=(text,), daemon=True).start()
    messages = [json.loads(line) for line in _messages(["read", *opened])]
    assert [m for m in messages if m["type"] not in ("LOG", "STATE")] == []


def test_given_a_key_of_one_letter_when_checked_then_words_keep_theirs(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    connector = Connector(tmp_path, sandbox)
    settings = tmp_path / "short.json"
    settings.write_text(json.dumps({**connector.config, "api_key": "e", "secret_key": "t"}))
    run = connector.run("check", "--config", str(settings))
    assert "****" not in run.connection_status()["message"]
    assert "Copy both keys anew" in run.connection_status()["message"]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("status", [429, 503])
def test_given_an_endpoint_that_never_answers_when_read_then_stream_and_endpoint_are_named(
    status: int, tmp_path: Path
) -> None:
    names = {"config": config(), "catalog": configured([*discovered_streams()])}
    names["catalog"]["streams"] = [
        each for each in names["catalog"]["streams"] if each["stream"]["name"] == "cohorts"
    ]
    options = []
    for name, content in names.items():
        (tmp_path / name).write_text(json.dumps(content))
        options += [f"--{name}", str(tmp_path / name)]
    errors: list[str] = []
    with requests_mock.Mocker() as http, suppress(AirbyteTracedException):
        http.get("https://amplitude.com/api/3/cohorts", status_code=status, text="Busy")
        for line in _messages(["read", *options]):
            if error := json.loads(line).get("trace", {}).get("error"):
                errors.append(error["message"])
    assert errors[0].startswith(
        "The stream cohorts could not be read: /api/3/cohorts was asked as often as it may be. "
        f"Amplitude answered HTTP {status} (Busy)."
    )
