"""The installed command against the sandbox: everything arrives, and what fails says what to do."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from sandbox import Fault, Project, Sandbox
from unit_tests.installed import Connector, discovered_streams

pytestmark = pytest.mark.usefixtures("within_an_hour")

HOUR = timedelta(hours=1)


def now() -> datetime:
    return datetime.now(timezone.utc)


def hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Project(events_per_hour=20, first_hour=hour(now()) - 30 * HOUR)) as running:
        yield running


def rewritten(event: dict[str, Any]) -> dict[str, Any]:
    """An exported event as the connector delivers it; the CDK leaves nulls out of records."""
    return {
        name: f"{value.replace(' ', 'T')}+00:00" if name.endswith("_time") else value
        for name, value in event.items()
        if value is not None
    }


def events_of(sandbox: Sandbox) -> list[dict[str, Any]]:
    start = sandbox.project.first_hour
    assert start
    exportable = sandbox.exportable_hours(start, now())
    return [rewritten(event) for hour in exportable for event in sandbox.project.events(hour)]


def by(key: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: str(record[key]))


def without_nulls(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if v is not None} for record in records]


def in_utc(annotation: dict[str, Any]) -> dict[str, str]:
    return {
        name: datetime.fromisoformat(annotation[name]).astimezone(timezone.utc).isoformat()
        for name in ("start", "end")
        if name in annotation
    }


class TestRead:
    def test_given_a_project_when_read_then_each_stream_arrives_complete(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        run = Connector(tmp_path, sandbox).read()
        assert run.exit_code == 0, run.output[-2000:]
        project = sandbox.project
        assert project.first_hour
        days = [project.first_hour.date() + timedelta(days=n) for n in range(3)]
        days = [day for day in days if day <= now().date()]
        assert by("uuid", run.records("events")) == by("uuid", events_of(sandbox))
        assert by("date", run.records("active_users")) == [
            {"date": day.isoformat(), "statistics": project.active_users(day)} for day in days
        ]
        assert by("date", run.records("average_session_length")) == [
            {"date": day.isoformat(), "length": project.average_session_length(day)} for day in days
        ]
        assert run.records("annotations") == [
            {**annotation, **in_utc(annotation), "date": annotation["start"][:10]}
            for annotation in without_nulls(project.annotations())
        ]
        assert run.records("cohorts") == without_nulls(project.cohorts())
        assert run.records("events_list") == without_nulls(project.events_list())

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
            [request] = [r for r in sandbox.requests if "sessions" in r.path]
            assert request.params["end"] == f"{today:%Y%m%d}"

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
        start = f"{now() - timedelta(days=130):%Y-%m-%dT00:00:00Z}"
        with Sandbox(Project(), cost_limits=[(1_000, 300.0)]) as sandbox:
            run = Connector(tmp_path, sandbox, start_date=start).read("active_users")
            assert len(run.records("active_users")) == 131
            assert {request.status for request in sandbox.requests} == {200}
            assert max(request.cost for request in sandbox.requests) == 195

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
        assert "HTTP 403 (Invalid API/Secret Key combination)" in status["message"]
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
