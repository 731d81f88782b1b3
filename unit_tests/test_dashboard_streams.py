"""The streams of numbers by day, week, month or cohort, besides those of test_streams.py.

Requests are matched exactly, and states asserted literally; it is noon of 2024-01-03 in UTC.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests_mock
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from unit_tests.helpers import (
    AUTHORIZATION,
    answer,
    config,
    days,
    final_state,
    first_error,
    logged,
    partition_states,
    read_stream,
    records,
    refusal,
)

START = "2024-01-01T00:00:00Z"
DAYS = days("2024-01-01", "2024-01-03")
TODAY = {"start": "20240103", "end": "20240103"}
WHOLE = {"start": "20240101", "end": "20240103"}
NEW_TO_ACTIVE = {
    "se": '{"event_type": "_new"}',
    "re": '{"event_type": "_active"}',
    "rm": "n-day",
    "i": "1",
}
TOO_MANY = refusal(
    429,
    type="unspecified",
    message="Unspecified Error",
    metadata={"details": "Too Many Requests: Exceeded rate limit with query of cost 1800"},
)

pytestmark = pytest.mark.usefixtures("standing_clock")


def get(http: HttpMocker, path: str, params: Mapping[str, str], *answers: HttpResponse) -> None:
    """An answer for each time that this very request is made."""
    url = f"https://amplitude.com/api/2/{path}"
    http.get(HttpRequest(url, params, AUTHORIZATION), list(answers))


def series(xs: Sequence[Any], *rows: Sequence[Any], **labels: Any) -> HttpResponse:
    return answer({"xValues": xs, "series": rows, **labels})


def event(event_type: str) -> str:
    return json.dumps({"event_type": event_type})


def in_order(output: EntrypointOutput, *names: str) -> list[dict[str, Any]]:
    """Records sorted by the fields named: partitions finish in any order."""
    return sorted(map(dict, records(output)), key=lambda record: [record[name] for name in names])


def unreadable(path: str, window: Mapping[str, str], found: str) -> tuple[str, FailureType]:
    return (
        f"Amplitude's answer to /api/2/{path} for {window['start']} to {window['end']} can't be "
        f"read without guessing: {found}. Nothing of it was stored. Try again later; if it stays "
        "like this, report it to Amplitude's support.",
        FailureType.system_error,
    )


MONDAYS = [
    "2024-01-01",
    "2024-01-08",
    "2024-01-15",
    "2024-01-22",
    "2024-01-29",
    "2024-02-05",
]

# What each stream asks for of today, and an answer that is one record.
ONE_DAY: list[tuple[str, str, dict[str, str], HttpResponse]] = [
    ("sessions_per_user", "sessions/peruser", TODAY, series(["2024-01-03"], [1.5])),
    ("session_lengths", "sessions/length", TODAY, series(["0s-60s"], [9])),
    (
        "retention",
        "retention",
        {**TODAY, **NEW_TO_ACTIVE},
        answer(
            {
                "series": [
                    {
                        "dates": ["Jan 3"],
                        "values": {"Jan 3": [{"count": 5, "outof": 5, "incomplete": False}] * 2},
                    }
                ]
            }
        ),
    ),
    (
        "revenue_ltv",
        "revenue/ltv",
        {**TODAY, "m": "2", "i": "1"},
        answer(
            {
                "series": [
                    {
                        "dates": ["2024-01-03"],
                        "values": {
                            "2024-01-03": {"r1d": 9.5, "count": 3, "paid": 1, "total_amount": 9.5}
                        },
                    }
                ]
            }
        ),
    ),
]


class TestAll:
    @pytest.mark.parametrize(("stream", "path", "params", "sound"), ONE_DAY)
    def test_given_too_many_requests_when_read_then_the_same_is_asked_for_again(
        self, stream: str, path: str, params: dict[str, str], sound: HttpResponse
    ) -> None:
        with HttpMocker() as http:
            get(http, path, params, TOO_MANY, sound)
            output = read_stream(stream, config(start_date="2024-01-03T00:00:00Z"))
        assert len(records(output)) == 1

    @pytest.mark.parametrize("body", ['{"data": []}', '{"data": {"series": [5]}}', "[]"])
    @pytest.mark.parametrize(("stream", "path", "params", "sound"), ONE_DAY)
    def test_given_an_answer_of_another_shape_when_read_then_nothing_is_stored_and_the_state_stays(
        self, stream: str, path: str, params: dict[str, str], sound: HttpResponse, body: str
    ) -> None:
        cursor = "cohort_date" if "revenue" in path or "retention" in path else "date"
        with HttpMocker() as http:
            get(http, path, params, HttpResponse(body))
            output = read_stream(
                stream,
                config(start_date="2024-01-03T00:00:00Z"),
                {cursor: "2024-01-03"},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert records(output) == []
        assert final_state(output) == {cursor: "2024-01-03"}
        message, failure_type = first_error(output)
        assert f"/api/2/{path} for 20240103 to 20240103 can't be read without guessing" in message
        assert failure_type is FailureType.system_error


class TestUserCounts:
    def test_given_no_state_when_daily_counts_are_read_then_active_and_new_users_are_apart(
        self,
    ) -> None:
        with HttpMocker() as http:
            get(http, "users", {**WHOLE, "m": "active", "i": "1"}, series(DAYS, [5, 6, 7]))
            get(
                http,
                "users",
                {**WHOLE, "m": "new", "i": "1"},
                series(DAYS, [2, 0, 1], seriesLabels=[0], seriesMeta=[{"segmentIndex": 0}]),
            )
            output = read_stream("daily_user_counts", config())
        assert in_order(output, "metric", "date") == [
            {
                "date": day,
                "metric": metric,
                "segment": "(all)",
                "users": users,
                "is_complete": day < "2024-01-03",
            }
            for metric, counts in (("active", [5, 6, 7]), ("new", [2, 0, 1]))
            for day, users in zip(DAYS, counts, strict=True)
        ]
        assert all(type(record["is_complete"]) is bool for record in records(output))
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": "2024-01-03"}),
            ({"metric": "new"}, {"date": "2024-01-03"}),
        ]

    def test_given_the_state_of_a_sync_when_read_again_then_restated_days_arrive(self) -> None:
        settings = config(start_date="2024-01-02T00:00:00Z", dashboard_lookback_days=0)
        both = days("2024-01-02", "2024-01-03")
        ungrouped = {"i": "1"}
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {"start": "20240102", "end": "20240103", "m": metric, **ungrouped}
                get(http, "users", params, series(both, [1, 1]))
            state = final_state(read_stream("daily_user_counts", settings))
        with HttpMocker() as http:
            for metric in ("active", "new"):
                get(http, "users", {**TODAY, "m": metric, **ungrouped}, series(["2024-01-03"], [9]))
            output = read_stream("daily_user_counts", settings, state)
        assert [(r["date"], r["metric"], r["users"]) for r in in_order(output, "metric")] == [
            ("2024-01-03", "active", 9),
            ("2024-01-03", "new", 9),
        ]
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": "2024-01-03"}),
            ({"metric": "new"}, {"date": "2024-01-03"}),
        ]

    def test_given_no_group_when_read_then_g_is_not_sent_at_all(self) -> None:
        with requests_mock.Mocker() as http:
            http.get("/api/2/users", text=series(["2024-01-03"], [9]).body)
            read_stream("daily_user_counts", config(start_date="2024-01-03T00:00:00Z"))
        assert [
            sorted(parse_qs(urlsplit(request.url).query, keep_blank_values=True))
            for request in http.request_history
        ] == [["end", "i", "m", "start"]] * 2

    @pytest.mark.parametrize("labels", ["seriesLabels", "seriesMeta"])
    def test_given_a_property_when_read_then_each_of_its_values_is_a_segment(
        self, labels: str
    ) -> None:
        settings = config(start_date="2024-01-03T00:00:00Z", user_counts_group_by="gp:plan")
        with HttpMocker() as http:
            for metric in ("active", "new"):
                get(
                    http,
                    "users",
                    {**TODAY, "m": metric, "i": "1", "g": "gp:plan"},
                    series(["2024-01-03"], [4], [3], **{labels: ["pro", "(none)"]}),
                )
            output = read_stream("daily_user_counts", settings)
        assert [
            (r["metric"], r["segment"], r["users"]) for r in in_order(output, "metric", "segment")
        ] == [
            ("active", "(none)", 3),
            ("active", "pro", 4),
            ("new", "(none)", 3),
            ("new", "pro", 4),
        ]

    def test_given_a_property_never_received_when_read_then_the_user_is_told_the_field_to_change(
        self,
    ) -> None:
        settings = config(start_date="2024-01-03T00:00:00Z", user_counts_group_by="gp:plam")
        error = refusal(
            400,
            type="invalid",
            message="Invalid chart definition",
            metadata={"details": "Invalid user property gp:plam"},
        )
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {**TODAY, "m": metric, "i": "1", "g": "gp:plam"}
                get(http, "users", params, error)
            output = read_stream(
                "daily_user_counts", settings, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        message, failure_type = first_error(output)
        assert "(Invalid chart definition: Invalid user property gp:plam)" in message
        assert "Group User Counts by" in message
        assert failure_type is FailureType.config_error

    def test_given_a_project_east_of_utc_when_read_then_a_day_is_complete_by_its_clock(
        self,
    ) -> None:
        settings = config(
            start_date="2024-01-03T00:00:00Z", project_timezone="Pacific/Kiritimati"
        )  # where it is two o'clock on the 4th
        both = days("2024-01-03", "2024-01-04")
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {"start": "20240103", "end": "20240104", "m": metric, "i": "1"}
                get(http, "users", params, series(both, [1, 1]))
            output = read_stream("daily_user_counts", settings)
        assert [(r["date"], r["is_complete"]) for r in in_order(output, "metric", "date")] == [
            ("2024-01-03", True),
            ("2024-01-04", False),
        ] * 2

    def test_given_weeks_when_read_then_one_more_on_both_sides_is_asked_for_but_never_after_today(
        self, standing_clock: Any
    ) -> None:
        standing_clock.move_to("2024-02-07T12:00:00Z")
        windows = {
            ("20231225", "20240204"): ["2023-12-25", *MONDAYS[:5]],
            ("20240122", "20240207"): MONDAYS[3:],
        }
        with HttpMocker() as http:
            for (start, end), weeks in windows.items():
                for metric in ("active", "new"):
                    params = {"start": start, "end": end, "m": metric, "i": "7"}
                    get(http, "users", params, series(weeks, [int(w[-2:]) for w in weeks]))
            output = read_stream("weekly_user_counts", config())
        assert [
            (r["date"], r["users"], r["is_complete"])
            for r in in_order(output, "date")
            if r["metric"] == "new"
        ] == [(week, int(week[-2:]), week < "2024-02-05") for week in MONDAYS]
        assert len(records(output)) == 2 * len(MONDAYS), "none twice"
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": "2024-02-05"}),
            ({"metric": "new"}, {"date": "2024-02-05"}),
        ]

    def test_given_the_state_of_a_week_when_read_then_it_and_the_look_back_are_read_again(
        self, standing_clock: Any
    ) -> None:
        standing_clock.move_to("2024-02-07T12:00:00Z")
        state = {
            "use_global_cursor": False,
            "states": [
                {"partition": {"metric": metric}, "cursor": {"date": "2024-02-05"}}
                for metric in ("active", "new")
            ],
        }
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {"start": "20240116", "end": "20240207", "m": metric, "i": "7"}
                get(http, "users", params, series(MONDAYS[2:], [1, 2, 3, 4]))
            output = read_stream("weekly_user_counts", config(), state)
        assert [(r["date"], r["users"]) for r in in_order(output, "metric", "date")] == [
            ("2024-01-29", 3),
            ("2024-02-05", 4),
        ] * 2

    def test_given_weeks_of_a_project_west_of_utc_when_read_then_its_own_today_is_the_last_day(
        self, standing_clock: Any
    ) -> None:
        standing_clock.move_to("2024-01-15T03:00:00Z")  # still the 14th, a Sunday
        settings = config(project_timezone="America/Los_Angeles")
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {"start": "20231225", "end": "20240114", "m": metric, "i": "7"}
                get(http, "users", params, series(["2023-12-25", *MONDAYS[:2]], [1, 2, 3]))
            output = read_stream("weekly_user_counts", settings)
        assert [(r["date"], r["is_complete"]) for r in in_order(output, "metric", "date")] == [
            ("2024-01-01", True),
            ("2024-01-08", False),
        ] * 2

    @pytest.mark.parametrize(
        ("weeks", "found"),
        [
            (
                ["2024-01-01", "2024-01-15"],
                "2024-01-01, 2024-01-15 do not cover 2023-12-25 to 2024-01-17",
            ),
            (
                ["2023-12-25", "2024-01-01"],
                "2023-12-25, 2024-01-01 do not cover 2023-12-25 to 2024-01-17",
            ),
            (
                ["2024-01-08", "2024-01-15"],
                "2024-01-08, 2024-01-15 do not cover 2023-12-25 to 2024-01-17",
            ),
            (
                ["2024-01-15", "2024-01-08", "2024-01-01", "2023-12-25"],
                "2024-01-15, 2024-01-08, 2024-01-01, 2023-12-25 do not cover 2023-12-25 to "
                "2024-01-17",
            ),
            ([], "no dates do not cover 2023-12-25 to 2024-01-17"),
            (["Week 1", "Week 2"], 'the dates ["Week 1", "Week 2"] are none'),
            ([20240101, None], "the dates [20240101, null] are none"),
        ],
        ids=["gap", "ends early", "begins late", "backwards", "none", "texts", "no-texts"],
    )
    def test_given_weeks_that_leave_one_out_when_read_then_only_its_own_metric_stays_behind(
        self, standing_clock: Any, weeks: list[Any], found: str
    ) -> None:
        standing_clock.move_to("2024-01-17T12:00:00Z")
        asked = {"start": "20231225", "end": "20240117"}
        with HttpMocker() as http:
            get(
                http,
                "users",
                {**asked, "m": "active", "i": "7"},
                series(weeks, [1] * len(weeks)),
            )
            get(
                http,
                "users",
                {**asked, "m": "new", "i": "7"},
                series(["2023-12-25", *MONDAYS[:3]], [1, 2, 3, 4]),
            )
            output = read_stream(
                "weekly_user_counts", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert {record["metric"] for record in records(output)} == {"new"}
        assert first_error(output) == unreadable("users", asked, found)
        assert partition_states(output)[-1] == ({"metric": "new"}, {"date": "2024-01-15"})
        assert partition_states(output)[:-1] in (
            [],
            [({"metric": "active"}, {"date": "2023-12-31"})],  # the day before Start Date
        )

    def test_given_months_when_read_then_those_that_begin_in_the_window_are_kept(
        self, standing_clock: Any
    ) -> None:
        standing_clock.move_to("2024-03-02T12:00:00Z")
        asked = {"start": "20231201", "end": "20240302"}
        months = ["2023-12-01", "2024-01-01", "2024-02-01", "2024-03-01"]
        with HttpMocker() as http:
            for metric in ("active", "new"):
                get(http, "users", {**asked, "m": metric, "i": "30"}, series(months, [1, 2, 3, 4]))
            output = read_stream("monthly_user_counts", config())
        assert [
            (r["date"], r["users"], r["is_complete"])
            for r in in_order(output, "date")
            if r["metric"] == "active"
        ] == [("2024-01-01", 2, True), ("2024-02-01", 3, True), ("2024-03-01", 4, False)]
        assert len(records(output)) == 6

    def test_given_the_state_of_a_month_when_read_then_it_and_the_look_back_are_read_again(
        self, standing_clock: Any
    ) -> None:
        standing_clock.move_to("2024-03-02T12:00:00Z")
        state = {
            "states": [
                {"partition": {"metric": metric}, "cursor": {"date": "2024-03-01"}}
                for metric in ("active", "new")
            ]
        }
        # 31 days and seven before the state; one month more
        asked = {"start": "20231224", "end": "20240302"}
        months = ["2023-12-01", "2024-01-01", "2024-02-01", "2024-03-01"]
        with HttpMocker() as http:
            for metric in ("active", "new"):
                get(http, "users", {**asked, "m": metric, "i": "30"}, series(months, [1, 2, 3, 4]))
            output = read_stream("monthly_user_counts", config(), state)
        assert [(r["date"], r["users"]) for r in in_order(output, "metric", "date")] == [
            ("2024-02-01", 3),
            ("2024-03-01", 4),
        ] * 2

    def test_given_no_values_of_the_property_when_read_then_there_are_no_records(self) -> None:
        settings = config(start_date="2024-01-03T00:00:00Z", user_counts_group_by="country")
        with HttpMocker() as http:
            for metric in ("active", "new"):
                get(
                    http,
                    "users",
                    {**TODAY, "m": metric, "i": "1", "g": "country"},
                    series(["2024-01-03"], seriesLabels=[]),
                )
            output = read_stream("daily_user_counts", settings)
        assert records(output) == []
        assert output.errors == []

    def test_given_one_state_in_the_future_when_read_then_only_that_is_set_back_and_logged(
        self,
    ) -> None:
        state = {
            "states": [
                {"partition": {"metric": "active"}, "cursor": {"date": "2030-01-01"}},
                {"partition": {"metric": "new"}, "cursor": {"date": "2024-01-02"}},
            ]
        }
        both = {"start": "20240102", "end": "20240103"}
        with HttpMocker() as http:
            get(http, "users", {**TODAY, "m": "active", "i": "1"}, series(DAYS[2:], [1]))
            get(http, "users", {**both, "m": "new", "i": "1"}, series(DAYS[1:], [1, 2]))
            output = read_stream("daily_user_counts", config(dashboard_lookback_days=0), state)
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": "2024-01-03"}),
            ({"metric": "new"}, {"date": "2024-01-03"}),
        ]
        assert [line for line in logged(output) if "future" in line] == [
            "The saved state of the stream daily_user_counts lies in the future (2030-01-01). It "
            "is set back to 2024-01-03."
        ]

    def test_given_one_state_for_all_partitions_when_read_then_they_are_read_anew(self) -> None:
        state = {"use_global_cursor": True, "state": {"date": "2024-01-03"}, "lookback_window": 0}
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {**WHOLE, "m": metric, "i": "1"}
                get(http, "users", params, series(days("2024-01-01", "2024-01-03"), [1, 2, 3]))
            output = read_stream("daily_user_counts", config(), state)
        assert len(records(output)) == 6
        assert [line for line in logged(output) if "All are read anew." in line] == [
            "The saved state of the stream daily_user_counts is one for all of its partitions, of "
            "which there were more than 10,000. All are read anew."
        ]

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            ({"date": "2024-01-02"}, "it is {'date': '2024-01-02'}"),
            ({"states": "all"}, "it is {'states': 'all'}"),
            ({"states": [{"cursor": {}}]}, "it is {'states': [{'cursor': {}}]}"),
            (
                {"states": [{"partition": {"metric": "new"}, "cursor": {"date": "x"}}]},
                "date is 'x', where a time such as 2024-01-31 should be",
            ),
        ],
    )
    def test_given_a_state_that_can_not_be_read_when_read_then_it_is_named(
        self, state: dict[str, Any], reason: str
    ) -> None:
        with HttpMocker():
            output = read_stream(
                "daily_user_counts", config(), state, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert first_error(output) == (
            f"The saved state of the stream daily_user_counts can't be read: {reason}. Clear the "
            "stream's data in Airbyte, or mend its state.",
            FailureType.config_error,
        )


class TestSessionsPerUser:
    def test_given_two_syncs_when_read_then_the_second_brings_what_was_restated(self) -> None:
        settings = config(dashboard_lookback_days=1)
        with HttpMocker() as http:
            get(http, "sessions/peruser", WHOLE, series(DAYS, [1.25, 0, 2]))
            first = read_stream("sessions_per_user", settings)
            both = {"start": "20240102", "end": "20240103"}
            get(http, "sessions/peruser", both, series(DAYS[1:], [1.5, 2.5]))
            second = read_stream("sessions_per_user", settings, final_state(first))
        assert records(first) == [
            {"date": "2024-01-01", "sessions": 1.25},
            {"date": "2024-01-02", "sessions": 0},
            {"date": "2024-01-03", "sessions": 2},
        ]
        assert records(second) == [
            {"date": "2024-01-02", "sessions": 1.5},
            {"date": "2024-01-03", "sessions": 2.5},
        ]
        assert final_state(first) == final_state(second) == {"date": "2024-01-03"}


class TestSessionLengths:
    def test_given_no_state_when_read_then_each_day_is_a_request_of_its_own(self) -> None:
        with HttpMocker() as http:
            for number, day in enumerate(DAYS):
                get(
                    http,
                    "sessions/length",
                    {name: day.replace("-", "") for name in ("start", "end")},
                    series(["0s-60s", "60s-120.5s"], [120408 + number, number]),
                )
            output = read_stream("session_lengths", config())
        assert in_order(output, "date", "from_seconds") == [
            {
                "date": day,
                "bucket": bucket,
                "from_seconds": from_seconds,
                "to_seconds": to_seconds,
                "sessions": sessions + number,
            }
            for number, day in enumerate(DAYS)
            for bucket, from_seconds, to_seconds, sessions in (
                ("0s-60s", 0, 60, 120408),
                ("60s-120.5s", 60, 120.5, 0),
            )
        ]
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_a_state_when_read_then_its_day_and_the_look_back_come_again(self) -> None:
        with HttpMocker() as http:
            for day in ("20240102", "20240103"):
                get(
                    http,
                    "sessions/length",
                    {"start": day, "end": day},
                    series(["0s-60s"], [int(day)]),
                )
            output = read_stream(
                "session_lengths", config(dashboard_lookback_days=1), {"date": "2024-01-03"}
            )
        assert [(r["date"], r["sessions"]) for r in in_order(output, "date")] == [
            ("2024-01-02", 20240102),
            ("2024-01-03", 20240103),
        ]

    @pytest.mark.parametrize(
        "bucket",
        [
            "1 min - 2 min",
            "60s",
            "60s-",
            "-60s",
            ">3600s",
            "1h-2h",
            "",
            "0s-60s-90s",
            "{{ 1 }}",
        ],
    )
    def test_given_a_label_of_another_form_when_read_then_it_stays_and_its_bounds_are_empty(
        self, bucket: str
    ) -> None:
        with HttpMocker() as http:
            get(http, "sessions/length", TODAY, series([bucket], [9]))
            output = read_stream("session_lengths", config(start_date="2024-01-03T00:00:00Z"))
        assert records(output) == [{"date": "2024-01-03", "bucket": bucket, "sessions": 9}]

    @pytest.mark.parametrize(
        ("buckets", "found"),
        [
            (["0s-60s", "0s-60s"], "an x value stands twice"),
            (["0s-60s"], "1 x values but 2 values in series 1"),
            ({"0s-60s": 1}, "data.xValues is an object where a list should be"),
            (["0s-60s", None], "x value 2 is null where a text should be"),
            (["0s-60s", 60], "x value 2 is a number where a text should be"),
        ],
    )
    def test_given_buckets_that_can_not_be_told_apart_when_read_then_only_that_day_stays_behind(
        self, buckets: Any, found: str
    ) -> None:
        yesterday = {"start": "20240102", "end": "20240102"}
        with HttpMocker() as http:
            get(http, "sessions/length", TODAY, series(buckets, [1, 2]))
            get(http, "sessions/length", yesterday, series(["0s-60s"], [3]))
            output = read_stream(
                "session_lengths",
                config(start_date="2024-01-02T00:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert [(r["date"], r["sessions"]) for r in records(output)] == [("2024-01-02", 3)]
        assert first_error(output) == unreadable("sessions/length", TODAY, found)
        assert final_state(output) == {"date": "2024-01-02"}


def cell(count: int, out_of: int, incomplete: bool = False) -> dict[str, Any]:
    return {"count": count, "outof": out_of, "incomplete": incomplete}


def cohorts(values: Mapping[str, Any], **more: Any) -> HttpResponse:
    return answer({"series": [{"dates": list(values), "values": values, **more}]})


class TestRetention:
    def test_given_no_state_when_read_then_a_record_is_a_cohort_and_a_day(self) -> None:
        with HttpMocker() as http:
            get(
                http,
                "retention",
                {**WHOLE, **NEW_TO_ACTIVE},
                cohorts(
                    {  # the newest first, as Amplitude lists them
                        "Jan 3": [cell(9, 9), cell(9, 9, True)],
                        "Jan 1": [cell(8, 8), cell(7, 8), cell(3, 8), cell(1, 8, True)],
                    },
                    combined=[cell(17, 17)],
                ),
            )
            output = read_stream("retention", config())
        assert in_order(output, "cohort_date", "day_number") == [
            {
                "cohort_date": cohort_date,
                "day_number": day_number,
                "users": users,
                "cohort_size": cohort_size,
                "is_complete": is_complete,
            }
            for cohort_date, day_number, users, cohort_size, is_complete in (
                ("2024-01-01", 0, 7, 8, True),
                ("2024-01-01", 1, 3, 8, True),
                ("2024-01-01", 2, 1, 8, False),
                ("2024-01-03", 0, 9, 9, False),
            )
        ]
        assert final_state(output) == {"cohort_date": "2024-01-03"}

    def test_given_a_state_when_read_then_the_30_days_and_the_look_back_before_it_come_again(
        self,
    ) -> None:
        settings = config(start_date="2023-11-01T00:00:00Z", dashboard_lookback_days=0)
        with requests_mock.Mocker() as http:
            http.get("/api/2/retention", text=cohorts({}).body)
            output = read_stream("retention", settings, {"cohort_date": "2024-01-03"})
        asked = [parse_qs(urlsplit(request.url).query) for request in http.request_history]
        assert min(query["start"][0] for query in asked) == "20231204"
        assert max(query["end"][0] for query in asked) == "20240103"
        assert final_state(output) == {"cohort_date": "2024-01-03"}

    def test_given_restated_cells_when_read_again_then_they_arrive(self) -> None:
        with HttpMocker() as http:
            params = {**TODAY, **NEW_TO_ACTIVE}
            early, late = ({"Jan 3": [cell(n, n), cell(n, n, True)]} for n in (4, 5))
            get(http, "retention", params, cohorts(early), cohorts(late))
            settings = config(start_date="2024-01-03T00:00:00Z")
            first = read_stream("retention", settings)
            second = read_stream("retention", settings, final_state(first))
        assert [r["users"] for r in records(first) + records(second)] == [4, 5]

    @pytest.mark.parametrize(
        ("start", "now", "named", "expected"),
        [
            (
                "2023-12-30",
                "2024-01-02",
                ["Jan 2", "Jan 1", "Dec 31", "Dec 30"],
                ["2024-01-02", "2024-01-01", "2023-12-31", "2023-12-30"],
            ),
            (
                "2024-02-28",
                "2024-03-01",
                ["Mar 1", "Feb 29", "Feb 28"],
                ["2024-03-01", "2024-02-29", "2024-02-28"],
            ),
            ("2024-05-01", "2024-05-02", ["2024-05-02", "May 1"], ["2024-05-02", "2024-05-01"]),
        ],
        ids=["new year", "leap day", "whole dates"],
    )
    def test_given_dates_without_a_year_when_read_then_it_is_that_of_the_window(
        self, standing_clock: Any, start: str, now: str, named: list[str], expected: list[str]
    ) -> None:
        standing_clock.move_to(f"{now}T12:00:00Z")
        window = {"start": start.replace("-", ""), "end": now.replace("-", "")}
        values = {name: [cell(n, n)] * 2 for n, name in enumerate(named)}
        with HttpMocker() as http:
            get(http, "retention", {**window, **NEW_TO_ACTIVE}, cohorts(values))
            output = read_stream("retention", config(start_date=f"{start}T00:00:00Z"))
        assert [(r["cohort_date"], r["users"]) for r in records(output)] == [
            (day, n) for n, day in enumerate(expected)
        ]

    @pytest.mark.parametrize(
        "name", ["Feb 29", "Jan 4", "Dec 31", "2023-01-03", "jan 3", "Jan 003"]
    )
    def test_given_a_date_that_was_not_asked_for_when_read_then_it_is_named_and_nothing_is_stored(
        self, name: str
    ) -> None:
        values = {"Jan 3": [cell(5, 5)] * 2, name: [cell(5, 5)] * 2}
        with HttpMocker() as http:
            get(http, "retention", {**WHOLE, **NEW_TO_ACTIVE}, cohorts(values))
            output = read_stream("retention", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION)
        assert records(output) == []
        found = f'"{name}" was not asked for'
        assert first_error(output) == unreadable("retention", WHOLE, found)

    def test_given_no_new_users_at_all_when_read_then_there_are_no_records(self) -> None:
        with HttpMocker() as http:
            get(http, "retention", {**WHOLE, **NEW_TO_ACTIVE}, cohorts({}))
            output = read_stream("retention", config())
        assert records(output) == []
        assert output.errors == []


class TestRevenueLtv:
    LTV: Mapping[str, str] = {**WHOLE, "m": "2", "i": "1"}

    def test_given_no_state_when_read_then_a_record_is_a_cohort_and_a_number_of_days(self) -> None:
        cells = {"r1d": 9.99, "r2d": 19.98, "r90d": 742, "count": 110, "paid": 37}
        with HttpMocker() as http:
            get(
                http,
                "revenue/ltv",
                self.LTV,
                cohorts({"2024-01-02": {**cells, "total_amount": 781.39}}, seriesLabels=[""]),
            )
            output = read_stream("revenue_ltv", config())
        assert in_order(output, "day_number") == [
            {
                "cohort_date": "2024-01-02",
                "day_number": number,
                "revenue": revenue,
                "users": 110,
                "paying_users": 37,
                "total_amount": 781.39,
            }
            for number, revenue in ((1, 9.99), (2, 19.98), (90, 742))
        ]
        assert final_state(output) == {"cohort_date": "2024-01-02"}

    def test_given_a_state_when_read_then_90_days_and_the_look_back_before_it_come_again(
        self,
    ) -> None:
        settings = config(start_date="2023-01-01T00:00:00Z", dashboard_lookback_days=2)
        with requests_mock.Mocker() as http:
            http.get("/api/2/revenue/ltv", text=cohorts({}).body)
            read_stream("revenue_ltv", settings, {"cohort_date": "2024-01-03"})
        asked = [parse_qs(urlsplit(request.url).query) for request in http.request_history]
        assert min(query["start"][0] for query in asked) == "20231003"
        assert max(query["end"][0] for query in asked) == "20240103"

    def test_given_restated_revenue_when_read_again_then_it_arrives(self) -> None:
        money = {"count": 1, "paid": 1, "total_amount": 5}
        with HttpMocker() as http:
            get(
                http,
                "revenue/ltv",
                self.LTV,
                *(cohorts({"2024-01-01": {"r1d": r, **money}}) for r in (4, 5)),
            )
            first = read_stream("revenue_ltv", config())
            second = read_stream("revenue_ltv", config(), final_state(first))
        assert [r["revenue"] for r in records(first) + records(second)] == [4, 5]


class TestEventCounts:
    """Names of event types come from events_list, which is asked once for each metric."""

    @staticmethod
    def listed(http: HttpMocker, *names: str) -> None:
        event_types = answer([{"id": n, "value": name} for n, name in enumerate(names)])
        get(http, "events/list", {}, event_types)

    @staticmethod
    def count(
        http: HttpMocker, name: str, metric: str, window: Mapping[str, str], *answers: HttpResponse
    ) -> None:
        params = {**window, "e": event(name), "m": metric, "i": "1"}
        get(http, "events/segmentation", params, *answers)

    @staticmethod
    def state(*parts: tuple[str, str, str]) -> dict[str, Any]:
        return {
            "use_global_cursor": False,
            "states": [
                {
                    "partition": {"event_type": name, "parent_slice": {"metric": metric}},
                    "cursor": {"date": day},
                }
                for name, metric, day in parts
            ],
        }

    def test_given_no_state_when_read_then_each_event_type_is_counted_by_both_metrics(
        self,
    ) -> None:
        with HttpMocker() as http:
            self.listed(http, "Sign Up", "Play")
            for n, (name, metric) in enumerate(
                (name, metric) for name in ("Sign Up", "Play") for metric in ("totals", "uniques")
            ):
                labels = {"seriesLabels": [0], "seriesMeta": [{"segmentIndex": 0, "eventIndex": 0}]}
                self.count(http, name, metric, WHOLE, series(DAYS, [n, 10, 20], **labels))
            output = read_stream("event_counts", config())
        assert in_order(output, "event_type", "metric", "date") == [
            {"date": day, "event_type": name, "metric": metric, "value": value}
            for name, metric, n in (
                ("Play", "totals", 2),
                ("Play", "uniques", 3),
                ("Sign Up", "totals", 0),
                ("Sign Up", "uniques", 1),
            )
            for day, value in zip(DAYS, [n, 10, 20], strict=True)
        ]
        assert [({**partition}, cursor) for partition, cursor in partition_states(output)] == [
            (each["partition"], each["cursor"])
            for each in self.state(
                ("Sign Up", "totals", "2024-01-03"),
                ("Play", "totals", "2024-01-03"),
                ("Sign Up", "uniques", "2024-01-03"),
                ("Play", "uniques", "2024-01-03"),
            )["states"]
        ]

    def test_given_a_state_when_read_then_a_new_event_type_is_read_from_start_date_all_the_same(
        self,
    ) -> None:
        state = self.state(
            ("Old", "totals", "2024-01-03"),
            ("Old", "uniques", "2024-01-03"),
            ("Gone", "totals", "2024-01-02"),
        )
        state["state"] = {"date": "2024-01-03"}
        with HttpMocker() as http:
            self.listed(http, "Old", "New")
            for metric in ("totals", "uniques"):
                self.count(http, "Old", metric, TODAY, series(DAYS[2:], [9]))
                self.count(http, "New", metric, WHOLE, series(DAYS, [1, 2, 3]))
            output = read_stream("event_counts", config(dashboard_lookback_days=0), state)
        assert [
            (r["event_type"], r["date"], r["value"])
            for r in in_order(output, "metric", "date", "value")
        ] == [
            ("New", "2024-01-01", 1),
            ("New", "2024-01-02", 2),
            ("New", "2024-01-03", 3),
            ("Old", "2024-01-03", 9),
        ] * 2

    def test_given_one_that_fails_when_read_then_only_its_own_state_stays_behind(self) -> None:
        state = self.state(
            ("Good", "totals", "2024-01-01"),
            ("Good", "uniques", "2024-01-01"),
            ("Bad", "totals", "2024-01-01"),
            ("Bad", "uniques", "2024-01-01"),
        )
        settings = config(dashboard_lookback_days=0)
        unknown = refusal(400, type="invalid", message="Invalid event Bad")
        with HttpMocker() as http:
            self.listed(http, "Good", "Bad")
            for metric in ("totals", "uniques"):
                self.count(http, "Good", metric, WHOLE, series(DAYS, [1, 2, 3]))
            self.count(http, "Bad", "totals", WHOLE, series(DAYS[:2], [1, 2]))
            self.count(http, "Bad", "uniques", WHOLE, unknown)
            output = read_stream(
                "event_counts", settings, state, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert {record["event_type"] for record in records(output)} == {"Good"}
        assert partition_states(output) == [
            (each["partition"], each["cursor"])
            for each in self.state(
                ("Good", "totals", "2024-01-03"),
                ("Good", "uniques", "2024-01-03"),
                ("Bad", "totals", "2024-01-01"),
                ("Bad", "uniques", "2024-01-01"),
            )["states"]
        ]
        messages = [m.trace.error.message for m in output.errors]  # type: ignore[union-attr]
        assert (
            unreadable("events/segmentation", WHOLE, "2 days where 3 were asked for")[0] in messages
        )
        assert any(
            str(m).startswith("Amplitude answered HTTP 400 (Invalid event Bad)") for m in messages
        )
        with HttpMocker() as http:
            self.listed(http, "Good", "Bad")
            for metric in ("totals", "uniques"):
                self.count(http, "Good", metric, TODAY, series(DAYS[2:], [4]))
                self.count(http, "Bad", metric, WHOLE, series(DAYS, [1, 2, 3]))
            output = read_stream("event_counts", settings, final_state(output))
        assert len(records(output)) == 2 + 6

    def test_given_one_that_fails_in_the_first_sync_when_read_again_then_it_starts_at_start_date(
        self,
    ) -> None:
        settings = config(dashboard_lookback_days=0)
        with HttpMocker() as http:
            self.listed(http, "Good", "Bad")
            for metric in ("totals", "uniques"):
                self.count(http, "Good", metric, WHOLE, series(DAYS, [1, 2, 3]))
                self.count(http, "Bad", metric, WHOLE, refusal(400, message="No"))
            first = read_stream("event_counts", settings, expected=ExpectedOutcome.EXPECT_EXCEPTION)
        with HttpMocker() as http:
            self.listed(http, "Good", "Bad")
            for metric in ("totals", "uniques"):
                self.count(http, "Good", metric, TODAY, series(DAYS[2:], [3]))
                self.count(http, "Bad", metric, WHOLE, series(DAYS, [1, 2, 3]))
            second = read_stream("event_counts", settings, final_state(first))
        assert len([r for r in records(second) if r["event_type"] == "Bad"]) == 6

    @pytest.mark.parametrize(
        "name",
        [
            "'quoted'",
            '"quoted"',
            'it\'s "both"',
            "{{ config['secret_key'] }}",
            "{% raw %}",
            "{braces}",
            "{'a': 1}",
            "[1]",
            "a/b?c&d=e#f",
            "50% off",
            "a%2Fb",
            "back\\slash\\n",
            "line\nend",
            " blanks ",
            "😀 Ünïcode",
            "<b>&amp;</b>",
            "007",
            "1e3",
            "1_000",
            "True",
            "None",
            "null",
            "nan",
            "",
            "[Amplitude] Start Session",
        ],
    )
    def test_given_a_name_of_any_characters_when_read_then_it_arrives_as_it_is(
        self, name: str
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get("/api/2/events/list", text=answer([{"id": 1, "value": name}]).body)
            http.get("/api/2/events/segmentation", text=series(["2024-01-03"], [5]).body)
            output = read_stream("event_counts", config(start_date="2024-01-03T00:00:00Z"))
        asked = [
            json.loads(parse_qs(urlsplit(request.url).query)["e"][0])
            for request in http.request_history
            if request.path.endswith("segmentation")
        ]
        assert asked == [{"event_type": name}] * 2
        assert [record["event_type"] for record in records(output)] == [name] * 2
        assert [partition["event_type"] for partition, _ in partition_states(output)] == [name] * 2

    def test_given_no_event_types_when_read_then_there_are_no_records(self) -> None:
        with HttpMocker() as http:
            self.listed(http)
            output = read_stream("event_counts", config())
        assert records(output) == []
        assert output.errors == []

    def test_given_no_list_of_event_types_when_read_then_it_fails_and_says_so(self) -> None:
        with HttpMocker() as http:
            get(http, "events/list", {}, HttpResponse('{"data": null}'))
            output = read_stream(
                "event_counts", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert "/api/2/events/list can't be read without guessing" in first_error(output)[0]

    def test_given_a_list_of_event_types_that_is_no_answer_yet_when_read_then_it_is_asked_for_again(
        self,
    ) -> None:
        event_types = answer([{"id": 1, "value": "Play"}])
        with HttpMocker() as http:
            get(http, "events/list", {}, HttpResponse("<html>Please wait</html>"), event_types)
            for metric in ("totals", "uniques"):
                self.count(http, "Play", metric, TODAY, TOO_MANY, series(DAYS[2:], [1]))
            output = read_stream("event_counts", config(start_date="2024-01-03T00:00:00Z"))
        assert len(records(output)) == 2

    def test_given_full_refresh_when_read_then_all_of_it_comes(self) -> None:
        with HttpMocker() as http:
            self.listed(http, "Play")
            for metric in ("totals", "uniques"):
                self.count(http, "Play", metric, WHOLE, series(DAYS, [1, 2, 3]))
            output = read_stream("event_counts", config(), sync_mode=SyncMode.full_refresh)
        assert len(records(output)) == 6
