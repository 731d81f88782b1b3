"""Each stream through the CDK's entrypoint: requests matched exactly, state asserted literally."""

import base64
import json
from typing import Any

import freezegun
import pytest
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from unit_tests.helpers import (
    API_KEY,
    SECRET_KEY,
    archive,
    config,
    final_state,
    first_error,
    json_lines,
    read_stream,
    records,
)

NOW = "2024-01-03T23:30:00Z"
EXPORT = "https://amplitude.com/api/2/export"
USERS = "https://amplitude.com/api/2/users"
SESSIONS = "https://amplitude.com/api/2/sessions/average"

AUTHORIZATION = {
    "Authorization": f"Basic {base64.b64encode(f'{API_KEY}:{SECRET_KEY}'.encode()).decode()}"
}

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(autouse=True)
def _frozen_time() -> Any:
    with freezegun.freeze_time(NOW):
        yield


def export(start: str, end: str) -> HttpRequest:
    return HttpRequest(EXPORT, {"start": start, "end": end}, AUTHORIZATION)


def exported(*events: dict[str, Any]) -> HttpResponse:
    body = archive({"187520/187520_2024-01-01_7#0.json.gz": json_lines(events)})
    return HttpResponse(body, 200, {"Content-Type": "application/zip"})


def event(uuid: str, uploaded: str) -> dict[str, Any]:
    return {"uuid": uuid, "server_upload_time": uploaded, "event_type": "Signed Up"}


def answer(data: Any, root_key: str = "data") -> HttpResponse:
    return HttpResponse(json.dumps({root_key: data}))


def refusal(status: int, **error: Any) -> HttpResponse:
    return HttpResponse(json.dumps({"error": {"http_code": status, **error}}), status)


NO_DATA = HttpResponse("Raw data files were not found.", 404)
TOO_LARGE = HttpResponse("", 400)


class TestEvents:
    def test_given_no_state_when_read_then_windows_reach_from_start_date_to_the_last_full_hour(
        self,
    ) -> None:
        with HttpMocker() as http:
            http.get(
                export("20240101T00", "20240101T23"),
                exported(event("a", "2024-01-01 07:00:00.123456")),
            )
            http.get(export("20240102T00", "20240102T23"), NO_DATA)
            http.get(
                export("20240103T00", "20240103T20"),
                exported(event("b", "2024-01-03 19:59:59.000001")),
            )
            output = read_stream("events", config())
        assert sorted(records(output), key=lambda record: str(record["uuid"])) == [
            event("a", "2024-01-01T07:00:00.123456+00:00"),
            event("b", "2024-01-03T19:59:59.000001+00:00"),
        ]
        assert final_state(output) == {"server_upload_time": "20240103T19"}

    @pytest.mark.parametrize(
        ("settings", "first_hour"),
        [
            ({}, "20240103T13"),
            ({"lookback_window_hours": 24}, "20240102T19"),
            ({"lookback_window_hours": 2}, "20240103T17"),
            ({"lookback_window_hours": 1}, "20240103T18"),
            ({"lookback_window_hours": 0}, "20240103T19"),
            ({"lookback_window_hours": 24, "start_date": "2024-01-03T10:00:00Z"}, "20240103T10"),
            ({"lookback_window_hours": 0, "start_date": "2024-01-03T19:00:00Z"}, "20240103T19"),
            ({"lookback_window_hours": 0, "start_date": "2024-01-03T20:00:00Z"}, "20240103T20"),
            ({"lookback_window_hours": 6, "start_date": "2024-01-03T20:00:00Z"}, "20240103T20"),
        ],
    )
    def test_given_a_state_when_read_then_the_look_back_is_read_again_but_nothing_before_start_date(
        self, settings: dict[str, Any], first_hour: str
    ) -> None:
        settings = config(request_time_range=48, **settings)
        with HttpMocker() as http:
            http.get(
                export(first_hour, "20240103T20"),
                exported(event("c", "2024-01-03 20:10:00.000000")),
            )
            output = read_stream("events", settings, {"server_upload_time": "20240103T18"})
        assert [record["uuid"] for record in records(output)] == ["c"]
        assert final_state(output) == {"server_upload_time": "20240103T20"}

    @pytest.mark.parametrize("state", [None, {}, {"server_upload_time": None}])
    @pytest.mark.parametrize("hours", [0, 6])
    def test_given_no_state_yet_when_read_then_start_dates_hour_is_the_first(
        self, state: dict[str, Any] | None, hours: int
    ) -> None:
        settings = config(start_date="2024-01-03T18:00:00Z", lookback_window_hours=hours)
        with HttpMocker() as http:
            http.get(export("20240103T18", "20240103T20"), NO_DATA)
            output = read_stream("events", settings, state)
        assert output.errors == []

    def test_given_no_look_back_and_nothing_new_when_read_then_the_state_stays(self) -> None:
        settings = config(lookback_window_hours=0)
        with HttpMocker() as http:
            http.get(export("20240103T19", "20240103T20"), NO_DATA)
            output = read_stream("events", settings, {"server_upload_time": "20240103T18"})
        assert final_state(output) == {"server_upload_time": "20240103T18"}

    def test_given_a_state_in_the_future_when_read_then_nothing_is_asked_and_it_stays(self) -> None:
        with HttpMocker():
            output = read_stream("events", config(), {"server_upload_time": "20300101T00"})
        assert output.errors == []
        assert final_state(output) == {"server_upload_time": "20300101T00"}

    @pytest.mark.parametrize("value", ["yesterday", "2024", 5])
    def test_given_a_state_that_can_not_be_read_when_read_then_stream_and_value_are_named(
        self, value: object
    ) -> None:
        with HttpMocker():
            output = read_stream(
                "events",
                config(),
                {"server_upload_time": value},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert first_error(output) == (
            f"The saved state of the stream events can't be read: server_upload_time is {value!r}, "
            "where a time such as 20240131T20 should be. Clear the stream's data in Airbyte, or "
            "mend its state.",
            FailureType.config_error,
        )

    @pytest.mark.parametrize(
        "written",
        ["20240103T18", "2024-01-03 18:00:00.000000", "2024-01-03T18:00:00.000000+00:00"],
    )
    def test_given_a_state_of_a_published_version_when_read_then_it_is_accepted(
        self, written: str
    ) -> None:
        settings = config(lookback_window_hours=1)
        with HttpMocker() as http:
            http.get(export("20240103T18", "20240103T20"), NO_DATA)
            output = read_stream("events", settings, {"server_upload_time": written})
        assert records(output) == []
        assert final_state(output) == {"server_upload_time": "20240103T18"}

    def test_given_full_refresh_when_read_then_everything_since_start_date_is_read(self) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z")
        with HttpMocker() as http:
            http.get(
                export("20240103T20", "20240103T20"),
                exported(event("d", "2024-01-03 20:00:00.000000")),
            )
            output = read_stream("events", settings, sync_mode=SyncMode.full_refresh)
        assert [record["uuid"] for record in records(output)] == ["d"]

    def test_given_a_start_date_in_the_future_when_read_then_nothing_is_asked_and_nothing_fails(
        self,
    ) -> None:
        with HttpMocker():
            output = read_stream("events", config(start_date="2030-01-01T00:00:00Z"))
        assert records(output) == []
        assert output.errors == []

    def test_given_a_request_time_range_when_read_then_windows_have_that_many_hours(self) -> None:
        settings = config(start_date="2024-01-03T00:00:00Z", request_time_range=12)
        with HttpMocker() as http:
            http.get(export("20240103T00", "20240103T11"), NO_DATA)
            http.get(export("20240103T12", "20240103T20"), NO_DATA)
            output = read_stream("events", settings)
        assert output.errors == []

    def test_given_a_range_that_halving_could_not_split_to_an_hour_when_read_then_it_is_1024_hours(
        self,
    ) -> None:
        settings = config(start_date="2023-11-01T00:00:00Z", request_time_range=8760)
        with HttpMocker() as http:
            http.get(export("20231101T00", "20231213T15"), NO_DATA)
            http.get(export("20231213T16", "20240103T20"), NO_DATA)
            output = read_stream("events", settings)
        assert output.errors == []

    def test_given_an_end_date_when_read_then_the_hour_before_it_is_the_last(self) -> None:
        settings = config(start_date="2024-01-02T18:00:00Z", end_date="2024-01-02T20:00:00Z")
        with HttpMocker() as http:
            http.get(export("20240102T18", "20240102T19"), NO_DATA)
            output = read_stream("events", settings)
        assert output.errors == []

    @pytest.mark.parametrize("status", [400, 504])
    def test_given_a_window_too_large_when_read_then_its_halves_are_read_and_the_state_is_the_same(
        self, status: int
    ) -> None:
        settings = config(start_date="2024-01-03T17:00:00Z")
        with HttpMocker() as http:
            http.get(export("20240103T17", "20240103T20"), HttpResponse("", status))
            http.get(
                export("20240103T17", "20240103T18"),
                exported(event("a", "2024-01-03 17:00:00.000000")),
            )
            http.get(export("20240103T19", "20240103T20"), HttpResponse("", status))
            http.get(export("20240103T19", "20240103T19"), NO_DATA)
            http.get(
                export("20240103T20", "20240103T20"),
                exported(event("b", "2024-01-03 20:00:00.000000")),
            )
            output = read_stream("events", settings)
        assert [record["uuid"] for record in records(output)] == ["a", "b"]
        assert final_state(output) == {"server_upload_time": "20240103T20"}

    def test_given_one_hour_too_large_when_read_then_the_error_names_the_s3_export(self) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z")
        with HttpMocker() as http:
            http.get(export("20240103T20", "20240103T20"), TOO_LARGE)
            output = read_stream("events", settings, expected=ExpectedOutcome.EXPECT_EXCEPTION)
        message, failure_type = first_error(output)
        assert "Amazon S3 destination" in message
        assert failure_type == FailureType.transient_error

    def test_given_a_failed_window_when_read_then_the_state_stays_before_it(self) -> None:
        damaged = archive({"m#0.json.gz": b"no JSON\n"})
        with HttpMocker() as http:
            http.get(
                export("20240101T00", "20240101T23"),
                exported(event("a", "2024-01-01 07:00:00.000000")),
            )
            http.get(export("20240102T00", "20240102T23"), HttpResponse(damaged, 200))
            http.get(
                export("20240103T00", "20240103T20"),
                exported(event("b", "2024-01-03 20:00:00.000000")),
            )
            output = read_stream("events", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION)
        assert final_state(output) == {"server_upload_time": "20240101T07"}
        message, _ = first_error(output)
        assert message == (
            "Amplitude sent something that is no event: line 1 of member m#0.json.gz of the export "
            "of 20240102T00 to 20240102T23. Nothing after it was read. Report the window to "
            "Amplitude's support."
        )

    def test_given_keys_pasted_with_blanks_when_read_then_they_are_sent_without(self) -> None:
        settings = config(
            start_date="2024-01-03T20:00:00Z", api_key=f" {API_KEY}", secret_key=f"{SECRET_KEY}\n"
        )
        with HttpMocker() as http:
            http.get(export("20240103T20", "20240103T20"), NO_DATA)
            output = read_stream("events", settings)
        assert output.errors == []

    def test_given_the_eu_region_when_read_then_the_eu_host_is_asked(self) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z", data_region="EU Residency Server")
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    "https://analytics.eu.amplitude.com/api/2/export",
                    {"start": "20240103T20", "end": "20240103T20"},
                    AUTHORIZATION,
                ),
                NO_DATA,
            )
            output = read_stream("events", settings)
        assert output.errors == []


class TestActiveUsers:
    def test_given_country_groups_when_read_then_a_day_holds_all_labels(self) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    USERS,
                    {"start": "20240101", "end": "20240103", "m": "active", "i": 1, "g": "country"},  # type: ignore[dict-item]
                    AUTHORIZATION,
                ),
                answer(
                    {
                        "xValues": ["2024-01-01", "2024-01-02", "2024-01-03"],
                        "series": [[5, 6, 7], [1, 0, 2]],
                        "seriesLabels": ["Germany", "(none)"],
                    }
                ),
            )
            output = read_stream("active_users", config())
        assert records(output) == [
            {"date": "2024-01-01", "statistics": {"Germany": 5, "(none)": 1}},
            {"date": "2024-01-02", "statistics": {"Germany": 6, "(none)": 0}},
            {"date": "2024-01-03", "statistics": {"Germany": 7, "(none)": 2}},
        ]
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_no_country_groups_when_read_then_g_is_not_sent(self) -> None:
        settings = config(start_date="2024-01-03T10:00:00Z", active_users_group_by_country=False)
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    USERS,
                    {"start": "20240103", "end": "20240103", "m": "active", "i": 1},  # type: ignore[dict-item]
                    AUTHORIZATION,
                ),
                answer({"xValues": ["2024-01-03"], "series": [[7]], "seriesLabels": [0]}),
            )
            output = read_stream("active_users", settings)
        assert records(output) == [{"date": "2024-01-03", "statistics": {"0": 7}}]

    def test_given_a_project_east_of_utc_when_read_then_its_day_that_has_begun_is_read(
        self,
    ) -> None:
        settings = config(
            start_date="2024-01-03T00:00:00Z",
            project_timezone="Asia/Tokyo",
            active_users_group_by_country=False,
        )
        with HttpMocker() as http:
            http.get(
                HttpRequest(USERS, {"start": "20240103", "end": "20240104", "m": "active", "i": 1}),  # type: ignore[dict-item]
                answer({"xValues": ["2024-01-03", "2024-01-04"], "series": [[7, 1]]}),
            )
            output = read_stream("active_users", settings)
        assert final_state(output) == {"date": "2024-01-04"}

    def test_given_a_property_never_received_when_read_then_the_user_is_told_the_field_to_turn_off(
        self,
    ) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    USERS,
                    {"start": "20240101", "end": "20240103", "m": "active", "i": 1, "g": "country"},  # type: ignore[dict-item]
                ),
                refusal(
                    400,
                    type="invalid",
                    message="Invalid chart definition",
                    metadata={"details": "Invalid user property country"},
                ),
            )
            output = read_stream(
                "active_users", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert first_error(output) == (
            "Amplitude answered HTTP 400 (Invalid chart definition: Invalid user property "
            "country). This project has never received the property country: turn off Active Users "
            "Group by Country.",
            FailureType.config_error,
        )

    def test_given_another_bad_query_when_read_then_amplitudes_own_words_are_shown(self) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    USERS,
                    {"start": "20240101", "end": "20240103", "m": "active", "i": 1, "g": "country"},  # type: ignore[dict-item]
                ),
                refusal(400, message="Bad date", metadata={"details": "start is after end"}),
            )
            output = read_stream(
                "active_users", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        message, failure_type = first_error(output)
        assert message.startswith("Amplitude answered HTTP 400 (Bad date: start is after end). ")
        assert failure_type == FailureType.system_error


class TestAverageSessionLength:
    def test_given_a_long_history_when_read_then_windows_have_49_days(self) -> None:
        settings = config(start_date="2023-11-01T00:00:00Z")
        with HttpMocker() as http:
            http.get(
                HttpRequest(SESSIONS, {"start": "20231101", "end": "20231219"}, AUTHORIZATION),
                answer({"xValues": ["2023-11-01"], "series": [[61.5]], "seriesMeta": [{}]}),
            )
            http.get(
                HttpRequest(SESSIONS, {"start": "20231220", "end": "20240103"}, AUTHORIZATION),
                answer({"xValues": ["2023-12-20", "2024-01-03"], "series": [[0, 59.25]]}),
            )
            output = read_stream("average_session_length", settings)
        assert sorted(records(output), key=lambda record: str(record["date"])) == [
            {"date": "2023-11-01", "length": 61.5},
            {"date": "2023-12-20", "length": 0},
            {"date": "2024-01-03", "length": 59.25},
        ]
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_an_end_date_when_read_then_the_day_before_it_is_the_last(self) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(SESSIONS, {"start": "20240101", "end": "20240101"}),
                answer({"xValues": ["2024-01-01"], "series": [[60]]}),
            )
            output = read_stream("average_session_length", config(end_date="2024-01-02T00:00:00Z"))
        assert final_state(output) == {"date": "2024-01-01"}

    @pytest.mark.parametrize("written", ["2024-01-02", "2024-01-02T00:00:00"])
    @pytest.mark.parametrize(("days", "first_day"), [(0, "20240102"), (1, "20240101")])
    def test_given_a_state_when_read_then_its_day_and_the_look_back_are_read_again(
        self, written: str, days: int, first_day: str
    ) -> None:
        settings = config(start_date="2023-06-01T00:00:00Z", dashboard_lookback_days=days)
        with HttpMocker() as http:
            http.get(
                HttpRequest(SESSIONS, {"start": first_day, "end": "20240103"}),
                answer({"xValues": ["2024-01-02", "2024-01-03"], "series": [[60, 62]]}),
            )
            output = read_stream("average_session_length", settings, {"date": written})
        assert final_state(output) == {"date": "2024-01-03"}


class TestLists:
    def test_given_annotations_when_read_then_the_day_of_start_stands_beside_the_v3_fields(
        self,
    ) -> None:
        ranged = {
            "id": 1,
            "label": "Release",
            "start": "2025-11-01T23:30:00-08:00",
            "end": "2025-11-10T07:00:00+01:00",
            "details": "Version 2",
            "category": {"id": 45678, "name": "Releases"},
            "chart_id": "abc123",
        }
        startless = {"id": 2, "label": "Somewhen"}
        with HttpMocker() as http:
            http.get(
                HttpRequest("https://amplitude.com/api/3/annotations", headers=AUTHORIZATION),
                answer([ranged, startless]),
            )
            output = read_stream("annotations", config(), sync_mode=SyncMode.full_refresh)
        assert records(output) == [{**ranged, "date": "2025-11-01"}, startless]

    def test_given_cohorts_when_read_then_sync_metadata_is_asked_for_and_kept(self) -> None:
        cohort = {"id": "26umsb5", "size": 111, "syncMetadata": [{"target": "braze"}]}
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    "https://amplitude.com/api/3/cohorts",
                    {"includeSyncInfo": "true"},
                    AUTHORIZATION,
                ),
                answer([cohort], root_key="cohorts"),
            )
            output = read_stream("cohorts", config(), sync_mode=SyncMode.full_refresh)
        assert records(output) == [cohort]

    def test_given_event_types_when_read_then_each_arrives_as_amplitude_sent_it(self) -> None:
        event_type = {"id": 1234567, "name": "Add Friends", "totals": 193167, "hidden": False}
        with HttpMocker() as http:
            http.get(
                HttpRequest("https://amplitude.com/api/2/events/list", headers=AUTHORIZATION),
                answer([event_type]),
            )
            output = read_stream("events_list", config(), sync_mode=SyncMode.full_refresh)
        assert records(output) == [event_type]


class TestRefusals:
    @pytest.mark.parametrize("stream", ["events", "active_users", "cohorts"])
    @pytest.mark.parametrize("status", [401, 403])
    def test_given_refused_keys_when_read_then_the_error_names_keys_and_region(
        self, stream: str, status: int
    ) -> None:
        url, params = {
            "events": (EXPORT, {"start": "20240103T20", "end": "20240103T20"}),
            "active_users": (
                USERS,
                {"start": "20240103", "end": "20240103", "m": "active", "i": 1},
            ),
            "cohorts": ("https://amplitude.com/api/3/cohorts", {"includeSyncInfo": "true"}),
        }[stream]
        settings = config(start_date="2024-01-03T20:00:00Z", active_users_group_by_country=False)
        with HttpMocker() as http:
            http.get(HttpRequest(url, params), HttpResponse("Invalid API Key", status))  # type: ignore[arg-type]
            output = read_stream(
                stream,
                settings,
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert first_error(output) == (
            f"Amplitude answered HTTP {status} (Invalid API Key). The API Key and the Secret Key "
            "were refused on the Standard Server. Copy both keys anew from the same project "
            "(Amplitude: Settings > Projects > your project > General). If they are right, the "
            "project lives in the other region: set Data Region to EU Residency Server.",
            FailureType.config_error,
        )

    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    @pytest.mark.parametrize("stream", ["events", "cohorts"])
    def test_given_a_passing_failure_when_read_then_the_request_is_repeated(
        self, stream: str, status: int
    ) -> None:
        url, params, success = {
            "events": (
                EXPORT,
                {"start": "20240103T20", "end": "20240103T20"},
                exported(event("a", "2024-01-03 20:00:00.000000")),
            ),
            "cohorts": (
                "https://amplitude.com/api/3/cohorts",
                {"includeSyncInfo": "true"},
                answer([{"id": "a"}], root_key="cohorts"),
            ),
        }[stream]
        failure = HttpResponse("", status, {"Retry-After": "1"})
        with HttpMocker() as http:
            http.get(HttpRequest(url, params), [failure, failure, success])
            output = read_stream(
                stream, config(start_date="2024-01-03T20:00:00Z"), sync_mode=SyncMode.full_refresh
            )
        assert len(records(output)) == 1
