"""Each stream through the CDK's entrypoint: requests matched exactly, state asserted literally."""

import base64
from collections import Counter
from datetime import timedelta
from typing import Any

import freezegun
import pytest
import requests_mock
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from unit_tests.helpers import (
    API_KEY,
    AUTHORIZATION,
    SECRET_KEY,
    answer,
    archive,
    config,
    days,
    final_state,
    first_error,
    json_lines,
    logged,
    read_stream,
    records,
    refusal,
)

NOW = "2024-01-03T23:30:00Z"
EXPORT = "https://amplitude.com/api/2/export"
USERS = "https://amplitude.com/api/2/users"
SESSIONS = "https://amplitude.com/api/2/sessions/average"

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


NO_DATA = refusal(
    404,
    type="unspecified",
    message="Unspecified Error",
    metadata={"details": "Raw data files were not found."},
)
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

    def test_given_a_project_name_when_read_then_every_event_carries_it(self) -> None:
        with HttpMocker() as http:
            http.get(
                export("20240103T00", "20240103T20"),
                exported(*[event(uuid, "2024-01-03 07:00:00.123456") for uuid in "ab"]),
            )
            output = read_stream(
                "events", config(start_date="2024-01-03T00:00:00Z", project_name="007")
            )
        time = "2024-01-03T07:00:00.123456+00:00"
        assert records(output) == [{**event(uuid, time), "project_name": "007"} for uuid in "ab"]

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

    def test_given_a_state_in_the_future_when_read_then_it_is_set_back_to_the_newest_hour(
        self,
    ) -> None:
        settings = config(lookback_window_hours=1)
        with HttpMocker() as http:
            http.get(export("20240103T20", "20240103T20"), NO_DATA)
            output = read_stream("events", settings, {"server_upload_time": "20300101T00"})
        assert final_state(output) == {"server_upload_time": "20240103T20"}
        assert (
            "The saved state of the stream events lies in the future (20300101T00). It is set back "
            "to 20240103T20."
        ) in logged(output)

    def test_given_an_event_uploaded_after_its_window_when_read_then_the_state_does_not_follow_it(
        self,
    ) -> None:
        settings = config(start_date="2024-01-03T19:00:00Z")
        with HttpMocker() as http:
            http.get(
                export("20240103T19", "20240103T20"),
                exported(
                    event("a", "2024-01-03 19:10:00.000000"),
                    event("odd", "2099-01-01 00:00:00.000000"),
                    event("odder", "2099-01-01T00:00:00.000000+00:00"),
                ),
            )
            output = read_stream("events", settings)
        assert records(output) == [
            event("a", "2024-01-03T19:10:00.000000+00:00"),
            event("odd", "2099-01-01 00:00:00.000000+00:00"),
            event("odder", "2099-01-01 00:00:00.000000+00:00"),
        ]
        assert final_state(output) == {"server_upload_time": "20240103T19"}

    @pytest.mark.parametrize(
        "state",
        [
            {
                "state_type": "date-range",
                "slices": [
                    {
                        "start": "20240101T00",
                        "end": "20240103T20",
                        "most_recent_cursor_value": "20240103T18",
                    }
                ],
            },
            {
                "state_type": "date-range",
                "slices": [{"start": "20240103T18", "end": "20240103T20"}],
            },
            {"use_global_cursor": True, "state": {"server_upload_time": "20240103T18"}},
            {"states": [{"partition": {}, "cursor": {"server_upload_time": "20240103T18"}}]},
        ],
        ids=["date-range", "without-records", "global", "per-partition"],
    )
    def test_given_a_state_of_another_cursor_of_the_cdk_when_read_then_it_is_taken_up(
        self, state: dict[str, Any]
    ) -> None:
        with HttpMocker() as http:
            http.get(export("20240103T18", "20240103T20"), NO_DATA)
            output = read_stream("events", config(lookback_window_hours=1), state)
        assert final_state(output) == {"server_upload_time": "20240103T18"}

    @pytest.mark.parametrize(
        "state",
        [
            {"state_type": "date-range", "slices": []},
            {"states": [{"cursor": {"server_upload_time": "20240103T18"}}] * 2},
            {"date": "2024-01-03"},
        ],
        ids=["no-slices", "two-partitions", "another-field"],
    )
    def test_given_a_state_without_this_cursor_when_read_then_it_is_refused_and_shown(
        self, state: dict[str, Any]
    ) -> None:
        with HttpMocker():
            output = read_stream(
                "events", config(), state, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        message, failure_type = first_error(output)
        assert message == (
            f"The saved state of the stream events can't be read: it is {state}. Clear the "
            "stream's data in Airbyte, or mend its state."
        )
        assert failure_type == FailureType.config_error

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

    @pytest.mark.parametrize(
        ("start", "end", "window"),
        [
            ("2024-01-01", "2024-01-02", ("20240101T00", "20240101T23")),
            ("2024-01-01T10:30:00Z", "2024-01-01T10:45:00Z", ("20240101T10", "20240101T10")),
            ("2024-01-01T10:59:59.999Z", "2024-01-01T11:00:01Z", ("20240101T10", "20240101T11")),
            ("2024-01-01T00:00:00+01:00", "2024-01-01T02:00:00+02:00", ("20231231T23",) * 2),
            ("2024-01-01T10:00:00", "2024-01-01T11:00:00.25", ("20240101T10", "20240101T10")),
        ],
    )
    def test_given_dates_in_any_form_when_read_then_they_are_rounded_to_whole_hours_of_utc(
        self, start: str, end: str, window: tuple[str, str]
    ) -> None:
        with HttpMocker() as http:
            http.get(export(*window), NO_DATA)
            output = read_stream("events", config(start_date=start, end_date=end))
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

    @pytest.mark.parametrize(
        ("boundary", "last", "first"),
        [
            ("2024-01-02T20:00:00Z", "20240102T19", "20240102T20"),
            ("2024-01-02T20:30:00Z", "20240102T20", "20240102T20"),
        ],
        ids=["whole hour: none twice", "within an hour: that hour twice"],
    )
    def test_given_connections_that_meet_when_read_then_the_end_date_is_the_others_start(
        self, boundary: str, last: str, first: str
    ) -> None:
        earlier = config(start_date="2024-01-02T18:00:00Z", end_date=boundary)
        later = config(start_date=boundary, end_date="2024-01-02T22:00:00Z")
        with HttpMocker() as http:
            http.get(export("20240102T18", last), NO_DATA)
            http.get(export(first, "20240102T21"), NO_DATA)
            outputs = [read_stream("events", settings) for settings in (earlier, later)]
        assert [output.errors for output in outputs] == [[], []]

    @pytest.mark.parametrize("status", [400, 413, 504])
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

    @pytest.mark.parametrize(
        ("empty", "said"),
        [
            (NO_DATA, "Unspecified Error: Raw data files were not found."),
            (
                refusal(404, metadata={"details": "Raw data files were not found"}),
                "Raw data files were not found",
            ),
            (
                refusal(404, message="Raw data files were not found.", metadata=None),
                "Raw data files were not found.",
            ),
            *(
                (HttpResponse(text, 404), text.strip())
                for text in ("Raw data files were not found.", "Raw data files were not found\n")
            ),
        ],
        ids=["envelope", "no full stop", "message", "text", "text without full stop"],
    )
    def test_given_amplitudes_sentence_for_no_events_when_read_then_the_window_is_empty(
        self, empty: HttpResponse, said: str
    ) -> None:
        with HttpMocker() as http:
            http.get(export("20240102T00", "20240102T23"), empty)
            http.get(
                export("20240103T00", "20240103T20"),
                exported(event("a", "2024-01-03 07:00:00.000000")),
            )
            output = read_stream("events", config(start_date="2024-01-02T00:00:00Z"))
        assert [record["uuid"] for record in records(output)] == ["a"]
        assert output.errors == []
        assert final_state(output) == {"server_upload_time": "20240103T07"}
        line = f"Export of 20240102T00 to 20240102T23: no events (HTTP 404: {said})"
        assert line in logged(output)

    @pytest.mark.parametrize(
        ("foreign", "said"),
        [
            (
                HttpResponse("<html>Not found</html>", 404),
                "a page of 22 bytes with the checksum 64c017dc",
            ),
            (
                HttpResponse("<p>Raw data files were not found.</p>", 404),
                "a page of 37 bytes with the checksum 04e2b784",
            ),
            (HttpResponse('{"error": "Not found"}', 404), "Not found"),
            (
                refusal(404, message="Unspecified Error", metadata={"details": "No data"}),
                "Unspecified Error: No data",
            ),
            (HttpResponse("[]", 404), "JSON of 2 bytes with the checksum 0d4cbb29"),
            (HttpResponse("{}", 404), "JSON of 2 bytes with the checksum a3a6bf43"),
            (HttpResponse("", 404), "an empty body"),
            (HttpResponse("File not found.", 404), "File not found."),
            (HttpResponse("No data", 404), "No data"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_given_a_404_that_is_not_amplitudes_when_read_then_nothing_is_skipped(
        self, foreign: HttpResponse, said: str
    ) -> None:
        with HttpMocker() as http:
            http.get(
                export("20240102T00", "20240102T23"),
                [foreign, exported(event("a", "2024-01-02 07:00:00.000000"))],
            )
            http.get(export("20240103T00", "20240103T20"), foreign)
            output = read_stream(
                "events",
                config(start_date="2024-01-02T00:00:00Z", num_workers=1),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert [record["uuid"] for record in records(output)] == ["a"]
        assert final_state(output) == {"server_upload_time": "20240102T07"}
        assert first_error(output) == (
            "Exhausted available request attempts. Please see logs for more details. Exception: "
            f"The answer to the export of 20240103T00 to 20240103T20 (HTTP 404: {said}) is not "
            "Amplitude's own sentence for a range without events, 'Raw data files were not found'. "
            "It may be a gateway's or a proxy's, so nothing was skipped. Try again later; if it "
            "stays, report it to Amplitude's support.",
            FailureType.transient_error,
        )

    def test_given_a_download_that_takes_hours_when_it_breaks_then_it_is_asked_for_again(
        self,
    ) -> None:
        whole = archive({"m#0.json.gz": json_lines([event("a", "2024-01-03 20:00:00.000000")])})
        bodies = iter([whole[:-30], whole[:-30], whole])
        with freezegun.freeze_time(NOW) as clock, requests_mock.Mocker() as http:

            def download(*_: Any) -> bytes:
                clock.tick(timedelta(hours=2))
                return next(bodies)

            http.get(f"{EXPORT}?start=20240103T20&end=20240103T20", content=download)
            output = read_stream("events", config(start_date="2024-01-03T20:00:00Z"))
        assert [record["uuid"] for record in records(output)] == ["a"]

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
            "Amplitude sent something that is no event: line 1 of member with a name "
            "of 11 characters of the export of 20240102T00 to 20240102T23. Nothing after it was "
            "read. Report the window to Amplitude's support."
        )

    def test_given_keys_pasted_with_blanks_when_read_then_they_are_sent_without(self) -> None:
        settings = config(
            start_date="2024-01-03T20:00:00Z", api_key=f" {API_KEY}", secret_key=f"{SECRET_KEY}\n"
        )
        with HttpMocker() as http:
            http.get(export("20240103T20", "20240103T20"), NO_DATA)
            output = read_stream("events", settings)
        assert output.errors == []

    @pytest.mark.parametrize(
        "key", ["12345678901e23456789012345678901", "1e10", "0x10", "'quoted'", "True", "{{ 1 }}"]
    )
    def test_given_a_key_that_looks_like_something_else_when_read_then_it_is_sent_as_it_is(
        self, key: str
    ) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z", api_key=key, secret_key=key)
        basic = base64.b64encode(f"{key}:{key}".encode()).decode()
        query = {"start": "20240103T20", "end": "20240103T20"}
        with HttpMocker() as http:
            http.get(HttpRequest(EXPORT, query, {"Authorization": f"Basic {basic}"}), NO_DATA)
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
            "country). This project has never received that property: turn off Active Users Group "
            "by Country.",
            FailureType.config_error,
        )

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                b'{"error":{"message":"Bad date","metadata":{"details":"start is after end"}}}',
                "Bad date: start is after end",
            ),
            (b'{"error":{"message":"Bad date","metadata":{"details":null}}}', "Bad date"),
            (b'{"error":{"message":"Bad date","metadata":null}}', "Bad date"),
            (b'{"error":"Bad date"}', "Bad date"),
            (b'["Bad date"]', "JSON of 12 bytes with the checksum 8d999d04"),
            (b"{}", "JSON of 2 bytes with the checksum a3a6bf43"),
        ],
    )
    def test_given_another_bad_query_when_read_then_amplitudes_own_words_are_shown(
        self, body: bytes, said: str
    ) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    USERS,
                    {"start": "20240101", "end": "20240103", "m": "active", "i": 1, "g": "country"},  # type: ignore[dict-item]
                ),
                HttpResponse(body, 400),
            )
            output = read_stream(
                "active_users", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        message, failure_type = first_error(output)
        assert message.startswith(f"Amplitude answered HTTP 400 ({said}). ")
        assert "country" not in message
        assert failure_type == FailureType.system_error

    def test_given_a_key_in_a_text_that_is_named_when_read_then_it_is_masked(self) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(
                    USERS,
                    {"start": "20240103", "end": "20240103", "m": "active", "i": 1, "g": "country"},  # type: ignore[dict-item]
                ),
                answer({"xValues": [SECRET_KEY], "series": [[1]], "seriesLabels": ["US"]}),
            )
            output = read_stream(
                "active_users",
                config(start_date="2024-01-03T00:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert 'date 1 is "****", which' in first_error(output)[0]
        assert SECRET_KEY[:8] not in str(output.get_formatted_error_message()) + str(output.logs)


def session_day(http: HttpMocker, day: str, sent: HttpResponse) -> None:
    asked = dict.fromkeys(("start", "end"), day.replace("-", ""))
    http.get(HttpRequest(SESSIONS, asked, AUTHORIZATION), sent)


class TestAverageSessionLength:
    """Each day is asked for by itself."""

    @pytest.mark.parametrize(
        ("start", "end", "last"),
        [
            ("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", "2024-01-01"),
            ("2024-01-01", "2024-01-02T00:00:01Z", "2024-01-02"),
            ("2024-01-01T23:30:00Z", "2024-01-02T23:30:00Z", "2024-01-02"),
            ("2023-12-20T00:00:00Z", None, "2024-01-03"),
        ],
    )
    def test_given_start_and_end_when_read_then_every_day_that_they_touch_arrives(
        self, start: str, end: str | None, last: str
    ) -> None:
        settings = config(start_date=start, **({"end_date": end} if end else {}))
        asked = days(start[:10], last)
        with HttpMocker() as http:
            for number, day in enumerate(asked):
                session_day(http, day, answer({"xValues": [day], "series": [[number]]}))
            output = read_stream("average_session_length", settings)
        assert sorted(records(output), key=lambda record: str(record["date"])) == [
            {"date": day, "length": number} for number, day in enumerate(asked)
        ]
        assert output.errors == []
        assert final_state(output) == {"date": last}

    @pytest.mark.parametrize("written", ["2024-01-02", "2024-01-02T00:00:00"])
    @pytest.mark.parametrize(("lookback", "first_day"), [(0, "2024-01-02"), (1, "2024-01-01")])
    def test_given_a_state_when_read_then_its_day_and_the_look_back_are_read_again(
        self, written: str, lookback: int, first_day: str
    ) -> None:
        settings = config(start_date="2023-06-01T00:00:00Z", dashboard_lookback_days=lookback)
        asked = days(first_day, "2024-01-03")
        with HttpMocker() as http:
            for day in asked:
                session_day(http, day, answer({"xValues": [day], "series": [[60]]}))
            output = read_stream("average_session_length", settings, {"date": written})
        assert sorted(str(record["date"]) for record in records(output)) == asked
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_another_day_than_asked_for_when_read_then_only_that_one_stays_behind(
        self,
    ) -> None:
        with HttpMocker() as http:
            session_day(http, "2024-01-02", answer({"xValues": ["2024-01-02"], "series": [[60]]}))
            session_day(http, "2024-01-03", answer({"xValues": ["2024-01-02"], "series": [[60]]}))
            output = read_stream(
                "average_session_length",
                config(dashboard_lookback_days=0),
                {"date": "2024-01-02"},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert records(output) == [{"date": "2024-01-02", "length": 60}]
        assert final_state(output) == {"date": "2024-01-02"}
        assert first_error(output) == (
            "Amplitude's answer to /api/2/sessions/average for 20240103 to 20240103 can't be read "
            'without guessing: date 1 is "2024-01-02", which was not asked for. Nothing of it was '
            "stored. Try again later; if it stays like this, report it to the connector's "
            "maintainers.",
            FailureType.system_error,
        )


class TestLists:
    def test_given_annotations_when_read_then_times_are_utc_and_the_local_day_of_start_beside_them(
        self,
    ) -> None:
        ranged = {
            "id": 1,
            "label": "Release",
            "start": "2025-11-01T23:30:00-08:00",
            "end": "2025-11-10T07:00:00+01:00",
            "details": "Version 2",
            "category": {"id": 45678, "category": "Releases"},
            "chart_id": "abc123",
        }
        startless = {"id": 2, "label": "Somewhen"}
        odd = {"id": 3, "label": "Odd", "start": 1761980400, "end": ""}
        with HttpMocker() as http:
            http.get(
                HttpRequest("https://amplitude.com/api/3/annotations", headers=AUTHORIZATION),
                answer([ranged, startless, odd]),
            )
            output = read_stream("annotations", config(), sync_mode=SyncMode.full_refresh)
        in_utc = {"start": "2025-11-02T07:30:00+00:00", "end": "2025-11-10T06:00:00+00:00"}
        named = {"category": {"id": 45678, "category": "Releases", "name": "Releases"}}
        assert records(output) == [
            {**ranged, **in_utc, **named, "date": "2025-11-01"},
            startless,
            odd,
        ]

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

    @pytest.mark.parametrize(
        ("sent", "delivered"), [(True, True), (False, False), (1, True), (0, False), (None, None)]
    )
    def test_given_event_types_when_read_then_timeline_hidden_is_a_boolean_and_all_else_as_sent(
        self, sent: object, delivered: object
    ) -> None:
        event_type = {"id": 1234567, "name": "Add Friends", "totals": 193167, "hidden": False}
        with HttpMocker() as http:
            http.get(
                HttpRequest("https://amplitude.com/api/2/events/list", headers=AUTHORIZATION),
                answer([{**event_type, "timeline_hidden": sent}, {**event_type, "id": 2}]),
            )
            output = read_stream("events_list", config(), sync_mode=SyncMode.full_refresh)
        shown = {} if delivered is None else {"timeline_hidden": delivered}
        assert [repr(record) for record in records(output)] == [
            repr({**event_type, **shown}),
            repr({**event_type, "id": 2}),
        ]

    @pytest.mark.parametrize("element", [{}, [], "", None, "text"], ids=repr)
    def test_given_an_element_that_is_no_record_when_read_then_only_its_own_stream_ends_and_says_so(
        self, element: object
    ) -> None:
        events = [event(str(number), "2024-01-03 20:00:00.000000") for number in range(500)]
        with HttpMocker() as http:
            http.get(export("20240103T20", "20240103T20"), exported(*events))
            http.get(
                HttpRequest("https://amplitude.com/api/3/cohorts", {"includeSyncInfo": "true"}),
                answer([{"id": "a"}, element, {"id": "b"}], root_key="cohorts"),
            )
            http.get(
                HttpRequest("https://amplitude.com/api/2/events/list"),
                answer([{"id": 1, "name": None}, {"id": 2}, {"id": 3}]),
            )
            output = read_stream(
                "events",
                config(start_date="2024-01-03T20:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
                beside=["cohorts", "events_list"],
            )
        assert Counter(message.record.stream for message in output.records if message.record) == {
            "events": 500,
            "events_list": 3,
        }
        states = {
            message.state.stream.stream_descriptor.name: message.state.stream.stream_state
            for message in output.state_messages
            if message.state and message.state.stream
        }
        assert vars(states["events"]) == {
            "server_upload_time": "20240103T20",
            "from": "20240103T20",
        }
        message, failure_type = first_error(output)
        assert message.startswith(
            "Amplitude's answer to /api/3/cohorts can't be read without guessing: element 2 of "
            "cohorts is "
        )
        assert failure_type == FailureType.system_error

    @pytest.mark.parametrize(
        ("stream", "path", "params", "key"),
        [
            ("annotations", "/api/3/annotations", {}, "data"),
            ("cohorts", "/api/3/cohorts", {"includeSyncInfo": "true"}, "cohorts"),
            ("events_list", "/api/2/events/list", {}, "data"),
        ],
    )
    @pytest.mark.parametrize(
        ("body", "found"), [('{"%s":null}', "null"), ('{"not %s":[]}', "missing")]
    )
    def test_given_no_list_when_read_then_it_fails_so_that_no_table_is_emptied(
        self, stream: str, path: str, params: dict[str, str], key: str, body: str, found: str
    ) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest(f"https://amplitude.com{path}", params), HttpResponse(body % key, 200)
            )
            output = read_stream(
                stream,
                config(),
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert records(output) == []
        message, failure_type = first_error(output)
        assert message == (
            f"Amplitude's answer to {path} can't be read without guessing: {key} is {found} where "
            "a list should be. Nothing of it was stored. Try again later; if it stays like this, "
            "report it to the connector's maintainers."
        )
        assert failure_type == FailureType.system_error

    def test_given_an_empty_list_when_read_then_there_are_no_records_and_nothing_fails(
        self,
    ) -> None:
        with HttpMocker() as http:
            http.get(HttpRequest("https://amplitude.com/api/3/annotations"), answer([]))
            output = read_stream("annotations", config(), sync_mode=SyncMode.full_refresh)
        assert records(output) == []
        assert output.errors == []


class TestRefusals:
    @pytest.mark.parametrize(
        "stream", ["events", "active_users", "average_session_length", "cohorts"]
    )
    @pytest.mark.parametrize(
        ("refused", "said"),
        [
            (
                HttpResponse('{"error": "Invalid API Key"}', 401),
                "HTTP 401 (Invalid API Key)",
            ),
            (
                refusal(
                    403,
                    type="unspecified",
                    message="Unspecified Error",
                    metadata={"details": "Invalid API Key"},
                ),
                "HTTP 403 (Unspecified Error: Invalid API Key)",
            ),
        ],
        ids=["401", "403"],
    )
    def test_given_refused_keys_when_read_then_the_error_names_keys_and_region(
        self, stream: str, refused: HttpResponse, said: str
    ) -> None:
        url, params = {
            "events": (EXPORT, {"start": "20240103T20", "end": "20240103T20"}),
            "active_users": (
                USERS,
                {"start": "20240103", "end": "20240103", "m": "active", "i": 1},
            ),
            "average_session_length": (SESSIONS, {"start": "20240103", "end": "20240103"}),
            "cohorts": ("https://amplitude.com/api/3/cohorts", {"includeSyncInfo": "true"}),
        }[stream]
        settings = config(start_date="2024-01-03T20:00:00Z", active_users_group_by_country=False)
        with HttpMocker() as http:
            http.get(HttpRequest(url, params), refused)  # type: ignore[arg-type]
            output = read_stream(
                stream,
                settings,
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert first_error(output) == (
            f"Amplitude answered {said}. The API Key and the Secret Key "
            "were refused on the Standard Server. Copy both keys anew from the same project "
            "(Amplitude: Settings > Projects > your project > General). If they are right, the "
            "project lives in the other region: set Data Region to EU Residency Server.",
            FailureType.config_error,
        )

    @pytest.mark.parametrize(
        ("error", "is_of_the_plan"),
        [
            ({"metadata": {"details": "Invalid API Key"}}, False),
            ({"message": "Invalid API Key"}, False),
            ({"message": "Behavioral cohorts are not part of your plan"}, True),
            ({"metadata": None}, True),
        ],
    )
    def test_given_a_403_to_cohorts_when_read_then_the_add_on_is_named_unless_it_is_the_keys(
        self, error: dict[str, Any], is_of_the_plan: bool
    ) -> None:
        with HttpMocker() as http:
            http.get(
                HttpRequest("https://amplitude.com/api/3/cohorts", {"includeSyncInfo": "true"}),
                refusal(403, type="unspecified", **error),
            )
            http.get(HttpRequest("https://amplitude.com/api/3/annotations"), answer([{"id": 1}]))
            output = read_stream(
                "cohorts",
                config(),
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
                beside=["annotations"],
            )
        assert records(output) == [{"id": 1}]
        message, failure_type = first_error(output)
        assert ("takes the Behavioral Cohorts add-on" in message) is is_of_the_plan
        assert ("The API Key and the Secret Key were refused" in message) is not is_of_the_plan
        assert failure_type is FailureType.config_error

    @pytest.mark.parametrize(
        ("status", "retry_after"),
        [(429, "1"), (500, "1"), (502, "-5"), (503, "nan"), (503, "Thu, 04 Jan 2024 00:29:59 GMT")],
    )
    @pytest.mark.parametrize("stream", ["events", "cohorts"])
    def test_given_a_passing_failure_when_read_then_the_request_is_repeated(
        self, stream: str, status: int, retry_after: str
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
        failure = HttpResponse("", status, {"Retry-After": retry_after})
        with HttpMocker() as http:
            http.get(HttpRequest(url, params), [failure, failure, success])
            output = read_stream(
                stream, config(start_date="2024-01-03T20:00:00Z"), sync_mode=SyncMode.full_refresh
            )
        assert len(records(output)) == 1

    @pytest.mark.parametrize("retry_after", ["3600", "Thu, 04 Jan 2024 00:30:00 GMT"])
    def test_given_a_wait_of_an_hour_when_read_then_the_sync_ends_instead(
        self, retry_after: str
    ) -> None:
        busy = HttpResponse("", 503, {"Retry-After": retry_after})
        with HttpMocker() as http:
            http.get(HttpRequest("https://amplitude.com/api/2/events/list"), busy)
            output = read_stream(
                "events_list",
                config(),
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert first_error(output) == (
            "Amplitude answered HTTP 503 and asks to wait for longer than a sync should "
            f"(Retry-After: {retry_after}). Run it again after that.",
            FailureType.transient_error,
        )
