"""The streams of numbers by day, week, month or cohort, besides those of test_streams.py.

Requests are matched exactly, and states asserted literally; it is noon of 2024-01-03 in UTC.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
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
    without_beginning,
)

START = "2024-01-01T00:00:00Z"
DAYS = days("2024-01-01", "2024-01-03")
TODAY = {"start": "20240103", "end": "20240103"}
WHOLE = {"start": "20240101", "end": "20240103"}
NEW_TO_ACTIVE = {
    "se": '{"event_type": "_new"}',
    "re": '{"event_type": "_active"}',
    "i": "1",
}
TOO_MANY, TOO_MANY_AT_ONCE = (
    refusal(
        429,
        type="unspecified",
        message="Unspecified Error",
        metadata={
            "details": f"Too Many Requests: Exceeded {limit} limit with query of cost {cost}"
        },
    )
    for limit, cost in (("rate", 1800), ("concurrent", 415))
)
TOO_FAR_BACK = refusal(
    403,
    type="unspecified",
    message="Unspecified Error",
    metadata={"details": "Date too far back"},
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
        "like this, report it to the connector's maintainers.",
        FailureType.system_error,
    )


def window(first: str, last: str) -> dict[str, str]:
    return {"start": first.replace("-", ""), "end": last.replace("-", "")}


TODAYS_MONTH = ("2024-01-01", "2024-01-03")
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
                        "dates": ["Jan 03, 2024"],
                        "values": {"Jan 03, 2024": [{"count": 5, "outof": 5}] * 2},
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
            get(http, path, params, TOO_MANY, TOO_MANY_AT_ONCE, sound)
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


# What stands beside "data" in a recorded answer
BESIDE: dict[str, Any] = {
    "timeComputed": 1704283200123,
    "wasCached": True,
    "cacheFreshnessLimit": 300000,
    "backend": "novaV2",
    "novaRuntime": 214,
    "novaRequestDuration": 251,
    "novaCost": 9,
    "throttleTime": 0,
    "minSampleRate": 1.0,
    "transformationIds": [],
    "queryIds": ["7f3c2a10-aaaa-4bbb-8ccc-0123456789ab"],
    "perQueryMetadata": [{"queryId": "7f3c2a10", "cost": 9, "isPartial": None}],
    "partialMergedAndNewUserInformation": [],
    "prunedResult": False,
    "hitChunkGroupByLimit": False,
    "subcluster": 61,
    "missedCacheAndNotComputed": False,
    "realtimeDataMissing": False,
    "timedOutRealtimeData": False,
    "isComplete": None,
}
LAST_TWO = {"start": "20240102", "end": "20240103"}
MIDNIGHTS = [f"{day}T00:00:00" for day in DAYS]


def recorded(data: Any, **more: Any) -> HttpResponse:
    return HttpResponse(json.dumps({"data": data, **BESIDE, **more}))


def recorded_series(xs: Sequence[str], *rows: Sequence[Any], **more: Any) -> HttpResponse:
    collapsed = [[{"setId": "", "value": sum(row)}] for row in rows]
    return recorded({"xValues": xs, "series": rows, "seriesCollapsed": collapsed, **more})


def nothing(xs: Sequence[str], **more: Any) -> HttpResponse:
    return recorded_series(xs, **{"seriesLabels": [], "seriesMeta": [], **more})


def recorded_cell(count: int, size: int, incomplete: bool) -> dict[str, Any]:
    sets = {"retainedSetId": "a:0:1", "dropoffSetId": "a:0:2"}
    return {"count": count, "outof": size, "incomplete": incomplete, **sets}


def recorded_cohorts(values: Mapping[str, Any], **more: Any) -> HttpResponse:
    one = {"dates": [*values], "values": values, "combined": [], **more}
    return recorded({"series": [one], "seriesMeta": [{"segmentIndex": 0, "eventIndex": 0}]})


def money(users: int, paying: int, total: float, *revenues: float) -> dict[str, Any]:
    """Cells of lifetime value, up to day 180."""
    by_day = {f"r{n}d": r for n, r in enumerate([*revenues, *[0] * 180][:180], start=1)}
    new = {f"r{n}new": 0 for n in (1, *range(7, 181))}
    sums = {"rtotal": total, "rtotalnew": 0, "total_amount": total}
    return {"count": users, "paid": paying, **by_day, **new, **sums}


def final(*done: int) -> dict[str, bool]:
    return {f"r{n}d": n in done for n in range(1, 181)}


def revenue_row(
    day: str, number: int, revenue: float, users: int, paying: int, total: float, is_final: bool
) -> dict[str, Any]:
    return {
        "cohort_date": day,
        "day_number": number,
        "revenue": revenue,
        "users": users,
        "paying_users": paying,
        "total_amount": total,
        "is_complete": is_final,
    }


def retention_row(day: str, number: int, users: int, size: int, is_final: bool) -> dict[str, Any]:
    return {
        "cohort_date": day,
        "day_number": number,
        "users": users,
        "cohort_size": size,
        "is_complete": is_final,
    }


def user_count_rows(users: Mapping[str, int], segment: str = "(all)") -> list[dict[str, Any]]:
    """Of both metrics; the last day, week or month has not ended."""
    return [
        {
            "date": day,
            "metric": metric,
            "segment": segment,
            "users": count,
            "is_complete": day != [*users][-1],
        }
        for metric in ("active", "new")
        for day, count in users.items()
    ]


Requests = list[tuple[dict[str, str], HttpResponse]]


class Recorded(NamedTuple):
    """A sync since 2024-01-02: its requests with their answers, and what it brings."""

    stream: str
    path: str
    answers: Requests
    rows: list[dict[str, Any]]
    cursor: str = "2024-01-03"
    settings: Mapping[str, Any] = {}

    def read(self) -> EntrypointOutput:
        with HttpMocker() as http:
            if self.stream == "event_counts":
                http.get(
                    HttpRequest("https://amplitude.com/api/2/events/list"),
                    answer([{"id": 1, "value": "Play", "waitroom_approved": None}]),
                )
            for params, sent in self.answers:
                get(http, self.path, params, sent)
            return read_stream(
                self.stream, config(start_date="2024-01-02T00:00:00Z", **self.settings)
            )

    def __str__(self) -> str:
        return ", ".join([self.stream, *self.settings])


def of_users(
    stream: str, interval: str, first: str, sent: HttpResponse, **group: str
) -> tuple[str, str, Requests]:
    """The answers to both metrics of a stream of user counts."""
    asked = {**window(first, "2024-01-03"), "i": interval, **group}
    return stream, "users", [({**asked, "m": metric}, sent) for metric in ("active", "new")]


def by_day(stream: str, path: str, *sent: HttpResponse) -> tuple[str, str, Requests]:
    return stream, path, [(window(d, d), each) for d, each in zip(DAYS[1:], sent, strict=True)]


def of_counts(sent: HttpResponse) -> tuple[str, str, Requests]:
    asked = {**LAST_TWO, "e": event("Play"), "i": "1"}
    answers = [({**asked, "m": metric}, sent) for metric in ("totals", "uniques")]
    return "event_counts", "events/segmentation", answers


def of_active(sent: HttpResponse, **group: str) -> tuple[str, str, Requests]:
    return "active_users", "users", [({**LAST_TWO, "m": "active", "i": "1", **group}, sent)]


def event_rows(*counts: int) -> list[dict[str, Any]]:
    return [
        {"date": day, "event_type": "Play", "metric": metric, "value": count}
        for metric in ("totals", "uniques")
        for day, count in zip(DAYS[1:], counts, strict=True)
    ]


def length_row(day: str, first: int, last: int, sessions: int) -> dict[str, Any]:
    bounds = {"from_seconds": float(first), "to_seconds": float(last)}
    return {"date": day, "bucket": f"{first}s-{last}s", "sessions": sessions, **bounds}


UNGROUPED = {"active_users_group_by_country": False}
BY_PLAN = {"user_counts_group_by": "gp:plan"}
ONE: dict[str, Any] = {"seriesLabels": [0], "seriesMeta": [{"segmentIndex": 0}]}
OF_SESSIONS: dict[str, Any] = {"seriesMeta": [{"segmentIndex": 0, "sessionIndex": 0}]}
OF_RETENTION = {**LAST_TWO, **NEW_TO_ACTIVE}
OF_REVENUE = {**LAST_TWO, "m": "2", "i": "1"}
ZERO_USERS = [{"date": day, "statistics": {"0": 0}} for day in DAYS[1:]]
LENGTHS = recorded({"xValues": ["0s-60s", "60s-180s"], "series": [[5, 1]]}, withSets=False)
NO_LENGTHS = recorded(
    {"xValues": [], "series": [], "seriesLabels": [], "seriesCollapsed": [], "seriesMeta": []},
    withSets=False,
)

WITH_DATA = [
    Recorded(
        *of_active(
            recorded_series(
                *(DAYS[1:], [12, 3], [1, 0]),
                seriesLabels=["US", "(none)"],
                seriesMeta=[{"segmentIndex": 0}] * 2,
            ),
            g="country",
        ),
        [
            {"date": "2024-01-02", "statistics": {"US": 12, "(none)": 1}},
            {"date": "2024-01-03", "statistics": {"US": 3, "(none)": 0}},
        ],
    ),
    Recorded(
        *of_active(recorded_series(DAYS[1:], [12, 3], **ONE)),
        [
            {"date": "2024-01-02", "statistics": {"0": 12}},
            {"date": "2024-01-03", "statistics": {"0": 3}},
        ],
        settings=UNGROUPED,
    ),
    Recorded(
        *of_users("daily_user_counts", "1", DAYS[1], recorded_series(DAYS[1:], [12, 3], **ONE)),
        user_count_rows({"2024-01-02": 12, "2024-01-03": 3}),
    ),
    Recorded(
        *of_users(
            *("daily_user_counts", "1", DAYS[1]),
            recorded_series(DAYS[1:], [12, 3], seriesLabels=["pro"]),
            g="gp:plan",
        ),
        user_count_rows({"2024-01-02": 12, "2024-01-03": 3}, "pro"),
        settings=BY_PLAN,
    ),
    Recorded(
        *of_users("weekly_user_counts", "7", DAYS[0], recorded_series(DAYS[:1], [14], **ONE)),
        user_count_rows({"2024-01-01": 14}),
        "2024-01-01",
    ),
    Recorded(
        *of_users("monthly_user_counts", "30", DAYS[0], recorded_series(DAYS[:1], [14], **ONE)),
        user_count_rows({"2024-01-01": 14}),
        "2024-01-01",
    ),
    Recorded(
        *by_day(
            *("average_session_length", "sessions/average"),
            recorded_series(MIDNIGHTS[1:2], [31.5], **OF_SESSIONS),
            recorded_series(MIDNIGHTS[2:], [30], **OF_SESSIONS),
        ),
        [{"date": "2024-01-02", "length": 31.5}, {"date": "2024-01-03", "length": 30}],
    ),
    Recorded(
        *by_day(
            *("sessions_per_user", "sessions/peruser"),
            recorded_series(MIDNIGHTS[1:2], [1.25], **OF_SESSIONS),
            recorded_series(MIDNIGHTS[2:], [1], **OF_SESSIONS),
        ),
        [{"date": "2024-01-02", "sessions": 1.25}, {"date": "2024-01-03", "sessions": 1}],
    ),
    Recorded(
        *by_day("session_lengths", "sessions/length", LENGTHS, LENGTHS),
        [
            length_row("2024-01-02", 0, 60, 5),
            length_row("2024-01-02", 60, 180, 1),
            length_row("2024-01-03", 0, 60, 5),
            length_row("2024-01-03", 60, 180, 1),
        ],
    ),
    Recorded(
        *of_counts(recorded_series(DAYS[1:], [7, 0], seriesLabels=[0])),
        event_rows(7, 0),
    ),
    Recorded(
        *("retention", "retention"),
        [
            (
                OF_RETENTION,
                recorded_cohorts(
                    {
                        "Jan 03, 2024": [recorded_cell(6, 6, i) for i in (False, True)],
                        "Jan 02, 2024": [
                            recorded_cell(count, 4, i)
                            for count, i in ((4, False), (4, True), (1, True))
                        ],
                    }
                ),
            )
        ],
        [
            retention_row("2024-01-02", 0, 4, 4, False),
            retention_row("2024-01-02", 1, 1, 4, False),
            retention_row("2024-01-03", 0, 6, 6, False),
        ],
    ),
    Recorded(
        *("revenue_ltv", "revenue/ltv"),
        [
            (
                OF_REVENUE,
                recorded_cohorts(
                    {"Jan 02": money(4, 1, 12.5, 9.5, 12.5), "Jan 03": money(6, 0, 0)},
                    complete={"Jan 02": final(1), "Jan 03": final()},
                    combined_complete=final(),
                    combined_projected={},
                ),
            )
        ],
        [
            revenue_row("2024-01-02", 1, 9.5, 4, 1, 12.5, True),
            revenue_row("2024-01-02", 2, 12.5, 4, 1, 12.5, False),
            revenue_row("2024-01-03", 1, 0, 6, 0, 0, False),
        ],
    ),
]

NOTHING = [
    # Nothing of a group is no row, and the state follows rows only.
    Recorded(*of_active(nothing(DAYS[1:]), g="country"), [], "2024-01-01"),
    Recorded(*of_active(nothing(DAYS[1:], seriesLabels=[0]), g="country"), [], "2024-01-01"),
    Recorded(*of_active(nothing(DAYS[1:])), ZERO_USERS, settings=UNGROUPED),
    Recorded(*of_active(nothing(DAYS[1:], seriesLabels=[0])), ZERO_USERS, settings=UNGROUPED),
    Recorded(
        *of_active(recorded({"xValues": DAYS[1:], "series": [[None, None]], **ONE})),
        ZERO_USERS,
        settings=UNGROUPED,
    ),
    Recorded(*of_active(recorded({"series": []})), [], "2024-01-01", settings=UNGROUPED),
    Recorded(
        *of_users("daily_user_counts", "1", DAYS[1], nothing(DAYS[1:])),
        user_count_rows({"2024-01-02": 0, "2024-01-03": 0}),
    ),
    Recorded(
        *of_users("daily_user_counts", "1", DAYS[1], nothing(DAYS[1:]), g="gp:plan"),
        *([], "2024-01-01", BY_PLAN),
    ),
    Recorded(
        *of_users("weekly_user_counts", "7", DAYS[0], nothing(DAYS[:1])),
        user_count_rows({"2024-01-01": 0}),
        "2024-01-01",
    ),
    Recorded(
        *of_users("monthly_user_counts", "30", DAYS[0], nothing(DAYS[:1])),
        user_count_rows({"2024-01-01": 0}),
        "2024-01-01",
    ),
    Recorded(
        *by_day(
            *("average_session_length", "sessions/average"),
            *(recorded_series([day], [0], **OF_SESSIONS) for day in MIDNIGHTS[1:]),
        ),
        [{"date": day, "length": 0} for day in DAYS[1:]],
    ),
    Recorded(
        *by_day(
            *("sessions_per_user", "sessions/peruser"),
            *(recorded_series([day], [0], **OF_SESSIONS) for day in MIDNIGHTS[1:]),
        ),
        [{"date": day, "sessions": 0} for day in DAYS[1:]],
    ),
    Recorded(
        *by_day("session_lengths", "sessions/length", NO_LENGTHS, LENGTHS),
        [length_row("2024-01-03", 0, 60, 5), length_row("2024-01-03", 60, 180, 1)],
    ),
    Recorded(
        *by_day("session_lengths", "sessions/length", NO_LENGTHS, NO_LENGTHS),
        *([], "2024-01-01"),
    ),
    Recorded(*of_counts(nothing(DAYS[1:])), event_rows(0, 0)),
    Recorded(
        *("retention", "retention"),
        [
            (
                OF_RETENTION,
                recorded_cohorts(
                    {
                        "Jan 03, 2024": [recorded_cell(0, 0, i) for i in (False, True)],
                        "Jan 02, 2024": [recorded_cell(0, 0, i) for i in (False, True, True)],
                    }
                ),
            )
        ],
        [
            retention_row("2024-01-02", 0, 0, 0, False),
            retention_row("2024-01-02", 1, 0, 0, False),
            retention_row("2024-01-03", 0, 0, 0, False),
        ],
    ),
    Recorded(
        *("revenue_ltv", "revenue/ltv"),
        [
            (
                OF_REVENUE,
                recorded_cohorts(
                    {day: money(0, 0, 0) for day in ("Jan 02", "Jan 03")},
                    complete={"Jan 02": final(1), "Jan 03": final()},
                ),
            )
        ],
        [
            revenue_row("2024-01-02", 1, 0, 0, 0, 0, True),
            revenue_row("2024-01-02", 2, 0, 0, 0, 0, False),
            revenue_row("2024-01-03", 1, 0, 0, 0, 0, False),
        ],
    ),
]


class TestRecordedAnswers:
    """Of the shapes that live projects were answered with in 2026."""

    @pytest.mark.parametrize("case", WITH_DATA, ids=str)
    def test_given_data_as_recorded_when_read_then_its_rows_arrive_and_the_state_moves(
        self, case: Recorded
    ) -> None:
        self.holds(case)

    @pytest.mark.parametrize("case", NOTHING, ids=str)
    def test_given_nothing_in_the_window_when_read_then_it_is_no_error(
        self, case: Recorded
    ) -> None:
        self.holds(case)

    @staticmethod
    def holds(case: Recorded) -> None:
        output = case.read()
        keys = [
            name
            for name in (
                "event_type",
                "metric",
                "date",
                "from_seconds",
                "cohort_date",
                "day_number",
            )
            if case.rows and name in case.rows[0]
        ]
        # Their types, too: 1 is no True.
        assert repr([*map(sorted, map(dict.items, in_order(output, *keys)))]) == repr(
            [*map(sorted, map(dict.items, case.rows))]
        )
        assert output.errors == []
        state = final_state(output)
        cursors = [state]
        if "states" in state:
            cursors = [part["cursor"] for part in state["states"]]
            assert len(cursors) == len(case.answers)
        assert [[*cursor.values()] for cursor in cursors] == [[case.cursor]] * len(cursors)

    def test_given_nothing_in_the_first_of_two_windows_when_read_then_the_state_passes_over_it(
        self,
    ) -> None:
        with HttpMocker() as http:
            for metric in ("active", "new"):
                asked = {"m": metric, "i": "30", "g": "gp:plan"}
                december = window("2023-12-01", "2023-12-31")
                get(http, "users", {**december, **asked}, nothing(["2023-12-01"]))
                january = recorded_series(["2024-01-01"], [9], seriesLabels=["pro"])
                get(http, "users", {**window(*TODAYS_MONTH), **asked}, january)
            output = read_stream(
                "monthly_user_counts", config(start_date="2023-12-01T00:00:00Z", **BY_PLAN)
            )
        assert in_order(output, "metric") == user_count_rows({"2024-01-01": 9}, "pro")
        assert output.errors == []
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": "2024-01-01"}),
            ({"metric": "new"}, {"date": "2024-01-01"}),
        ]


# Answers that say all that is needed, and something odd besides; what is read from them.
ODD_VALUES: list[Any] = [None, [], {}, "a text", 5, ["x", "y", "z"], [None], [[]], [{}]]
ODD_CELLS = [
    {"count": 4, "outof": 4},
    {"count": 4, "outof": 4, "incomplete": "no", "retainedSetId": 5, "dropoffSetId": None},
    {"count": 1, "outof": 4, "incomplete": None, "more": [{}]},
]


class TestFieldsThatAreNotNeeded:
    @pytest.mark.parametrize("name", ["seriesLabels", "seriesMeta", "seriesCollapsed", "more"])
    def test_given_them_in_any_form_when_nothing_is_grouped_then_it_is_read_all_the_same(
        self, name: str
    ) -> None:
        # A day for each form
        asked = days("2023-12-26", "2024-01-03")
        with HttpMocker() as http:
            for day, odd in zip(asked, ODD_VALUES, strict=True):
                get(http, "sessions/average", window(day, day), series([day], [7], **{name: odd}))
            output = read_stream(
                "average_session_length", config(start_date="2023-12-26T00:00:00Z")
            )
        assert in_order(output, "date") == [{"date": day, "length": 7} for day in asked]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}

    @pytest.mark.parametrize("odd", ODD_VALUES, ids=str)
    def test_given_them_in_any_form_beside_the_data_when_read_then_it_is_read_all_the_same(
        self, odd: Any
    ) -> None:
        sent = {"data": {"xValues": DAYS, "series": [[1, 2, 3]], "seriesLabels": ["US"]}}
        with HttpMocker() as http:
            get(
                *(http, "users", {**WHOLE, "m": "active", "i": "1", "g": "country"}),
                HttpResponse(json.dumps({**dict.fromkeys(BESIDE, odd), **sent})),
            )
            output = read_stream("active_users", config())
        assert [r["statistics"] for r in in_order(output, "date")] == [
            {"US": 1},
            {"US": 2},
            {"US": 3},
        ]
        assert output.errors == []

    @pytest.mark.parametrize(
        "sent",
        [
            {"values": {"Jan 02, 2024": ODD_CELLS}},
            {"values": {"Jan 02, 2024": ODD_CELLS}, "dates": None, "combined": {}},
            {"values": {"Jan 02, 2024": ODD_CELLS}, "dates": "Jan 02, 2024", "combined": 5},
            {"values": {"Jan 02, 2024": ODD_CELLS}, "dates": ["2024-01-02", None, "Week 1"]},
        ],
    )
    def test_given_retention_without_them_when_read_then_completeness_is_unknown(
        self, sent: Any
    ) -> None:
        with HttpMocker() as http:
            get(http, "retention", OF_RETENTION, answer({"series": [sent]}))
            output = read_stream("retention", config(start_date="2024-01-02T00:00:00Z"))
        assert in_order(output, "day_number") == [
            {"cohort_date": "2024-01-02", "day_number": number, "users": users, "cohort_size": 4}
            for number, users in enumerate((4, 1))
        ]
        assert output.errors == []
        assert final_state(output) == {"cohort_date": "2024-01-02"}

    @pytest.mark.parametrize(
        "complete",
        [
            {},
            {"complete": None},
            {"complete": []},
            {"complete": {"Jan 02": None}},
            {"complete": {"Jan 02": {"r1d": "yes", "r2d": None}}},
            {"complete": {"Jan 05": {"r1d": True}}, "dates": None},
        ],
        ids=str,
    )
    def test_given_revenue_without_them_when_read_then_they_are_left_out(
        self, complete: Any
    ) -> None:
        cells = {"r1d": 9.5, "r2d": 12, "r3d": 0, "r1new": "?", "rtotal": None}
        sent = {"values": {"Jan 02": cells}, **complete}
        with HttpMocker() as http:
            get(http, "revenue/ltv", OF_REVENUE, answer({"series": [sent]}))
            output = read_stream("revenue_ltv", config(start_date="2024-01-02T00:00:00Z"))
        assert in_order(output, "day_number") == [
            {"cohort_date": "2024-01-02", "day_number": 1, "revenue": 9.5},
            {"cohort_date": "2024-01-02", "day_number": 2, "revenue": 12},
        ]
        assert output.errors == []
        assert final_state(output) == {"cohort_date": "2024-01-02"}


class TestContradictions:
    """Only what can't be paired with certainty fails, and nothing besides."""

    @pytest.mark.parametrize(
        ("sent", "found"),
        [
            (series(DAYS, [1, 2, 3]), "1 series but no labels"),
            (series(DAYS, [1, 2, 3], seriesLabels=["US", "DE"]), "1 series but 2 seriesLabels"),
            (
                series(DAYS, [1, 2, 3], **ONE),
                "label 1 is a number, not the text of a group",
            ),
            (
                series(DAYS, [1, 2, 3], seriesMeta=[{"segmentIndex": 0}]),
                "label 1 is an object, not the text of a group",
            ),
            (
                series(DAYS, [1, 2, 3], [4, 5, 6], seriesLabels=["US", "US"]),
                "2 series, two of which have the same label",
            ),
            (
                series(DAYS, [1, 2], seriesLabels=["US"]),
                "3 x values but 2 values in series 1",
            ),
            (
                series(DAYS, [1, None, 3], seriesLabels=["US"]),
                "value 2 of series 1 is null",
            ),
            (
                series(DAYS, [1, True, 3], seriesLabels=["US"]),
                "value 2 of series 1 is a boolean",
            ),
            (
                series([], [1, 2, 3], seriesLabels=["US"]),
                "0 x values but 3 values in series 1",
            ),
        ],
    )
    def test_given_one_when_read_then_only_its_own_stream_stays_behind(
        self, sent: HttpResponse, found: str
    ) -> None:
        with HttpMocker() as http:
            get(http, "users", {**WHOLE, "m": "active", "i": "1", "g": "country"}, sent)
            get(http, "events/list", {}, answer([{"id": 1}]))
            output = read_stream(
                *("active_users", config(), {"date": "2023-12-31"}),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
                beside=["events_list"],
            )
        assert records(output) == [{"id": 1}]
        assert first_error(output) == unreadable("users", WHOLE, found)
        states = [m.state.stream for m in output.state_messages if m.state and m.state.stream]
        assert [
            without_beginning(vars(each.stream_state))
            for each in states
            if each.stream_state and each.stream_descriptor.name == "active_users"
        ][-1] == {"date": "2023-12-31"}

    def test_given_one_when_read_then_the_message_has_the_answers_shape_and_none_of_its_values(
        self,
    ) -> None:
        data = {
            "xValues": ["2024-01-02", "Jan 3, 2024"],
            "series": [[41871, 0], [3, 59303]],
            "seriesLabels": ["ann@example.com", "ann@example.com"],
            "seriesMeta": [{"segmentIndex": 0, "ben@example.com": 77177}] * 2,
        }
        sent = {"timeComputed": 1704283200123, "data": data, "wasCached": True, "queryIds": ["q7"]}
        with HttpMocker() as http:
            get(
                *(http, "users", {**LAST_TWO, "m": "active", "i": "1", "g": "country"}),
                HttpResponse(json.dumps({**sent, "backend": "novaV2", "throttleTime": None})),
            )
            output = read_stream(
                "active_users",
                config(start_date="2024-01-02T00:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        error = output.errors[0].trace.error  # type: ignore[union-attr]
        assert error
        assert error.message == (
            "Amplitude's answer to /api/2/users for 20240102 to 20240103 can't be read without "
            "guessing: 2 series, two of which have the same label. Nothing of it was stored. Try "
            "again later; if it stays like this, report it to the connector's maintainers. Shape "
            "of the answer, without its values: {timeComputed: integer, data: {xValues: [1 * date "
            "0000-00-00, 1 * date Mon 0, 0000], series: [2 * [2 * integer]], seriesLabels: [2 * "
            "text], seriesMeta: [2 * {segmentIndex, text(15): integer}]}, wasCached: boolean, "
            "queryIds: [1 * text], backend: text(6), throttleTime: null}"
        )
        for value in ("ann@", "ben@", "41871", "59303", "77177", "1704283200123", "q7", "nova"):
            assert value not in f"{output.errors}", value


class TestDays:
    """A day in any form that names one with certainty."""

    @pytest.mark.parametrize(
        ("start", "now", "texts"),
        [
            ("2024-02-28", "2024-03-01", ["2024-02-28", "2024-02-29", "2024-03-01"]),
            (
                *("2024-02-28", "2024-03-01"),
                ["2024-02-28T00:00:00", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00+00:00"],
            ),
            (
                *("2024-02-28", "2024-03-01"),
                ["2024-02-28 00:00:00", "2024-02-29T00:00:00.000-08:00", "2024-03-01T00:00+0530"],
            ),
            ("2024-02-28", "2024-03-01", ["Feb 28, 2024", "Feb 29, 2024", "Mar 1, 2024"]),
            ("2024-02-28", "2024-03-01", ["Feb 28", "Feb 29", "Mar 1"]),
            ("2024-02-28", "2024-03-01", ["feb 28", "FEB 29 2024", "mAR 01"]),
            ("2024-02-28", "2024-03-01", ["February 28, 2024", "February 29", "Mar. 01, 2024"]),
            (
                *("2023-12-30", "2024-01-02"),
                ["Dec 30", "Dec 31, 2023", "Jan 1", "Jan 02"],
            ),
            ("2023-02-27", "2023-03-01", ["Feb 27", "Feb 28", "Mar 1"]),
        ],
    )
    @pytest.mark.parametrize("turn", [1, -1], ids=["in order", "backwards"])
    def test_given_a_form_of_days_when_read_then_each_is_paired_with_its_number(
        self, standing_clock: Any, start: str, now: str, texts: list[str], turn: int
    ) -> None:
        standing_clock.move_to(f"{now}T12:00:00Z")
        asked = days(start, now)
        values = [*range(1, len(asked) + 1)]
        with HttpMocker() as http:
            get(
                *(http, "users", {**window(start, now), "m": "active", "i": "1"}),
                series(texts[::turn], values[::turn]),
            )
            output = read_stream(
                "active_users", config(start_date=f"{start}T00:00:00Z", **UNGROUPED)
            )
        assert in_order(output, "date") == [
            {"date": day, "statistics": {"0": value}}
            for day, value in zip(asked, values, strict=True)
        ]
        assert output.errors == []
        assert final_state(output) == {"date": now}

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            *(
                (text, json.dumps(text))
                for text in (
                    "2024-01-03T05:00:00",
                    "2024-01-03T24:00:00",
                    "2024-02-30",
                    "2024-1-3",
                    "Feb 30",
                    "Feb 29, 2023",
                    "Jan 3, 2023",
                    "Jan 4",
                    "Jan 0",
                    "Foo 3",
                    "3 Jan 2024",
                    "03/01/2024",
                    "Week 1",
                    "1",
                    "",
                )
            ),
            (20240103, "a number"),
            (None, "null"),
            (["2024-01-03"], "a list"),
        ],
        ids=str,
    )
    def test_given_a_text_that_names_no_day_asked_for_when_read_then_nothing_is_stored(
        self, text: Any, shown: str
    ) -> None:
        with HttpMocker() as http:
            get(
                *(http, "users", {**WHOLE, "m": "active", "i": "1"}),
                series([*DAYS[:2], text], [1, 2, 3]),
            )
            output = read_stream(
                "active_users", config(**UNGROUPED), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert records(output) == []
        found = f"date 3 is {shown}, which was not asked for"
        assert first_error(output) == unreadable("users", WHOLE, found)
        assert final_state(output) == {"date": "2023-12-31"}

    @pytest.mark.parametrize(
        ("texts", "found"),
        [
            (DAYS[:2], "1 of 3 dates are missing: 2024-01-03"),
            (DAYS[1:], "1 of 3 dates are missing: 2024-01-01"),
            ([*DAYS, "2024-01-04"], 'date 4 is "2024-01-04", which was not asked for'),
            ([*DAYS, "Jan 3"], "a date stands twice"),
        ],
        ids=["ends early", "begins late", "one more", "twice"],
    )
    def test_given_other_days_than_asked_for_when_read_then_nothing_is_stored(
        self, texts: list[str], found: str
    ) -> None:
        with HttpMocker() as http:
            get(
                *(http, "users", {**WHOLE, "m": "active", "i": "1"}),
                series(texts, [1] * len(texts)),
            )
            output = read_stream(
                "active_users", config(**UNGROUPED), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert records(output) == []
        assert first_error(output) == unreadable("users", WHOLE, found)
        assert final_state(output) == {"date": "2023-12-31"}


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

    @pytest.mark.parametrize(
        ("start", "end", "now", "windows"),
        [
            (  # both within a week
                *("2024-01-03", None, "2024-02-07"),
                {("20240101", "20240128"): MONDAYS[:4], ("20240129", "20240207"): MONDAYS[4:]},
            ),
            # the CDK adds a day to the last window
            ("2024-01-01", None, "2024-01-29", {("20240101", "20240129"): MONDAYS[:5]}),
            ("2024-01-07", None, "2024-01-07", {("20240101", "20240107"): MONDAYS[:1]}),
            ("2024-01-03", "2024-01-17", "2024-02-07", {("20240101", "20240121"): MONDAYS[:3]}),
            ("2024-01-03", "2024-01-15", "2024-02-07", {("20240101", "20240114"): MONDAYS[:2]}),
            ("2024-01-03", "2024-01-12", "2024-01-12", {("20240101", "20240112"): MONDAYS[:2]}),
        ],
        ids=[
            "two windows",
            "today is a Monday",
            "a Sunday alone",
            "ends within a week",
            "ends with a week",
            "ends in the week that has not ended",
        ],
    )
    def test_given_weeks_when_read_then_windows_are_whole_ones_up_to_today(
        self,
        standing_clock: Any,
        start: str,
        end: str | None,
        now: str,
        windows: dict[tuple[str, str], list[str]],
    ) -> None:
        standing_clock.move_to(f"{now}T12:00:00Z")
        settings = config(start_date=f"{start}T00:00:00Z")
        if end:
            settings["end_date"] = f"{end}T00:00:00Z"
        with HttpMocker() as http:
            for (first, last), weeks in windows.items():
                for metric in ("active", "new"):
                    params = {"start": first, "end": last, "m": metric, "i": "7"}
                    get(http, "users", params, series(weeks, [int(w[-2:]) for w in weeks]))
            output = read_stream("weekly_user_counts", settings)
        expected = [week for weeks in windows.values() for week in weeks]
        assert [
            (r["date"], r["users"], r["is_complete"]) for r in in_order(output, "metric", "date")
        ] == [(week, int(week[-2:]), len(days(week, now)) > 7) for week in expected] * 2, (
            "none twice"
        )
        assert output.errors == []
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": expected[-1]}),
            ({"metric": "new"}, {"date": expected[-1]}),
        ]

    @pytest.mark.parametrize(
        ("state", "look_back", "first"),
        [
            ("2024-02-05", 0, 5),
            ("2024-02-05", 3, 4),
            ("2024-02-05", 7, 4),
            ("2024-02-05", 8, 3),
            # 0.10.0 left the day before Start Date, and could leave any day of a week.
            ("2024-01-02", 0, 0),
            ("2024-02-01", 0, 4),
            ("2024-02-04", 7, 3),
            ("2024-02-07T00:00:00", 0, 5),
        ],
    )
    def test_given_the_state_of_a_week_when_read_then_it_is_read_again_from_a_monday_on(
        self, standing_clock: Any, state: str, look_back: int, first: int
    ) -> None:
        standing_clock.move_to("2024-02-07T12:00:00Z")
        saved = {
            "use_global_cursor": False,
            "states": [
                {"partition": {"metric": metric}, "cursor": {"date": state}}
                for metric in ("active", "new")
            ],
        }
        asked = [MONDAYS[first:]]
        if not first:
            asked = [MONDAYS[:4], MONDAYS[4:]]
        lasts = ["2024-01-28", "2024-02-07"][-len(asked) :]
        with HttpMocker() as http:
            for metric in ("active", "new"):
                for weeks, last in zip(asked, lasts, strict=True):
                    params = {**window(weeks[0], last), "m": metric, "i": "7"}
                    get(http, "users", params, series(weeks, [1] * len(weeks)))
            output = read_stream(
                "weekly_user_counts",
                config(start_date="2024-01-03T00:00:00Z", dashboard_lookback_days=look_back),
                saved,
            )
        assert [r["date"] for r in in_order(output, "metric", "date")] == MONDAYS[first:] * 2
        assert output.errors == []
        assert partition_states(output) == [
            ({"metric": metric}, {"date": max("2024-02-05", state[:10])})
            for metric in ("active", "new")
        ]

    def test_given_weeks_of_a_project_west_of_utc_when_read_then_its_own_today_is_the_last_day(
        self, standing_clock: Any
    ) -> None:
        standing_clock.move_to("2024-01-15T03:00:00Z")  # still the 14th, a Sunday
        settings = config(project_timezone="America/Los_Angeles")
        with HttpMocker() as http:
            for metric in ("active", "new"):
                params = {"start": "20240101", "end": "20240114", "m": metric, "i": "7"}
                get(http, "users", params, series(MONDAYS[:2], [2, 3]))
            output = read_stream("weekly_user_counts", settings)
        assert [(r["date"], r["is_complete"]) for r in in_order(output, "metric", "date")] == [
            ("2024-01-01", True),
            ("2024-01-08", False),
        ] * 2

    @pytest.mark.parametrize(
        ("weeks", "found"),
        [
            (["2024-01-01", "2024-01-15"], "1 of 3 dates are missing: 2024-01-08"),
            (["2024-01-08", "2024-01-01"], "1 of 3 dates are missing: 2024-01-15"),
            (["2024-01-08", "2024-01-15"], "1 of 3 dates are missing: 2024-01-01"),
            ([*MONDAYS[:3], "2024-01-15"], "a date stands twice"),
            ([*MONDAYS[:3], "2024-01-22"], 'date 4 is "2024-01-22", which was not asked for'),
            (["2023-12-31", "2024-01-07"], 'date 1 is "2023-12-31", which was not asked for'),
            (["Week 1", "Week 2"], 'date 1 is "Week 1", which was not asked for'),
            ([*MONDAYS[:2], None], "date 3 is null, which was not asked for"),
        ],
        ids=["gap", "ends early", "begins late", "twice", "more", "Sundays", "texts", "no text"],
    )
    def test_given_weeks_that_leave_one_out_when_read_then_only_its_own_metric_stays_behind(
        self, standing_clock: Any, weeks: list[Any], found: str
    ) -> None:
        standing_clock.move_to("2024-01-17T12:00:00Z")
        asked = {"start": "20240101", "end": "20240117"}
        with HttpMocker() as http:
            bad = series(weeks, [1] * len(weeks))
            get(http, "users", {**asked, "m": "active", "i": "7"}, bad)
            good = series(MONDAYS[2::-1], [3, 2, 1])
            get(http, "users", {**asked, "m": "new", "i": "7"}, good)
            output = read_stream(
                "weekly_user_counts", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert [(r["date"], r["metric"], r["users"]) for r in in_order(output, "date")] == [
            ("2024-01-01", "new", 1),
            ("2024-01-08", "new", 2),
            ("2024-01-15", "new", 3),
        ]
        assert first_error(output) == unreadable("users", asked, found)
        assert partition_states(output)[-1] == ({"metric": "new"}, {"date": "2024-01-15"})
        assert partition_states(output)[:-1] in (
            [],
            [({"metric": "active"}, {"date": "2023-12-31"})],  # the day before Start Date
        )

    @pytest.mark.parametrize(
        ("start", "end", "now", "windows"),
        [
            (
                *("2023-11-15", None, "2024-01-03"),
                [("2023-11-01", "2023-11-30"), ("2023-12-01", "2023-12-31"), TODAYS_MONTH],
            ),
            ("2023-12-31", None, "2024-01-01", [("2023-12-01", "2024-01-01")]),
            (
                *("2024-02-29", "2024-03-15", "2024-06-10"),
                [("2024-02-01", "2024-02-29"), ("2024-03-01", "2024-03-31")],
            ),
            ("2024-02-01", "2024-03-01", "2024-06-10", [("2024-02-01", "2024-02-29")]),
            ("2023-12-05", "2023-12-20", "2023-12-20", [("2023-12-01", "2023-12-20")]),
        ],
        ids=[
            "three",
            "today is the first of a month",
            "ends within a month",
            "ends with a month",
            "ends in the month that has not ended",
        ],
    )
    def test_given_months_when_read_then_windows_are_whole_ones_up_to_today(
        self,
        standing_clock: Any,
        start: str,
        end: str | None,
        now: str,
        windows: list[tuple[str, str]],
    ) -> None:
        standing_clock.move_to(f"{now}T12:00:00Z")
        settings = config(start_date=f"{start}T00:00:00Z")
        if end:
            settings["end_date"] = f"{end}T00:00:00Z"
        expected: list[str] = []
        with HttpMocker() as http:
            for first, last in windows:
                months = [day for day in days(first, last) if day.endswith("-01")]
                expected += months
                for metric in ("active", "new"):
                    params = {**window(first, last), "m": metric, "i": "30"}
                    get(http, "users", params, series(months, [int(m[5:7]) for m in months]))
            output = read_stream("monthly_user_counts", settings)
        assert [
            (r["date"], r["users"], r["is_complete"]) for r in in_order(output, "metric", "date")
        ] == [(month, int(month[5:7]), month[:7] < now[:7]) for month in expected] * 2
        assert output.errors == []
        assert partition_states(output) == [
            ({"metric": "active"}, {"date": expected[-1]}),
            ({"metric": "new"}, {"date": expected[-1]}),
        ]

    @pytest.mark.parametrize(
        ("state", "look_back", "first"),
        [
            ("2024-03-01", 0, "2024-03-01"),
            ("2024-03-01", 7, "2024-02-01"),
            ("2024-02-15", 0, "2024-02-01"),
            ("2024-02-15", 14, "2024-02-01"),
            ("2024-02-15", 15, "2024-01-01"),
            ("2024-01-31T00:00:00", 0, "2024-01-01"),
            ("2024-01-14", 365, "2024-01-01"),  # the day before Start Date
        ],
    )
    def test_given_the_state_of_a_month_when_read_then_it_is_read_again_from_a_first_on(
        self, standing_clock: Any, state: str, look_back: int, first: str
    ) -> None:
        standing_clock.move_to("2024-03-02T12:00:00Z")
        saved = {
            "states": [
                {"partition": {"metric": metric}, "cursor": {"date": state}}
                for metric in ("active", "new")
            ]
        }
        months = {
            month: {**window(month, last), "i": "30"}
            for month, last in (
                ("2024-01-01", "2024-01-31"),
                ("2024-02-01", "2024-02-29"),
                ("2024-03-01", "2024-03-02"),
            )
            if month >= first
        }
        with HttpMocker() as http:
            for metric in ("active", "new"):
                for month, params in months.items():
                    get(http, "users", {**params, "m": metric}, series([month], [1]))
            output = read_stream(
                "monthly_user_counts",
                config(start_date="2024-01-15T00:00:00Z", dashboard_lookback_days=look_back),
                saved,
            )
        assert [r["date"] for r in in_order(output, "metric", "date")] == [*months] * 2
        assert output.errors == []
        assert partition_states(output) == [
            ({"metric": metric}, {"date": "2024-03-01"}) for metric in ("active", "new")
        ]

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
            for day, *values in zip(DAYS, [1.25, 0, 2], [None, 1.5, 2.5], strict=True):
                answers = [series([day], [value]) for value in values if value is not None]
                get(http, "sessions/peruser", window(day, day), *answers)
            first = read_stream("sessions_per_user", settings)
            second = read_stream("sessions_per_user", settings, final_state(first))
        assert in_order(first, "date") == [
            {"date": "2024-01-01", "sessions": 1.25},
            {"date": "2024-01-02", "sessions": 0},
            {"date": "2024-01-03", "sessions": 2},
        ]
        assert in_order(second, "date") == [
            {"date": "2024-01-02", "sessions": 1.5},
            {"date": "2024-01-03", "sessions": 2.5},
        ]
        assert final_state(first) == final_state(second) == {"date": "2024-01-03"}


SESSIONS = [
    ("average_session_length", "sessions/average", "length"),
    ("sessions_per_user", "sessions/peruser", "sessions"),
    ("session_lengths", "sessions/length", "sessions"),
]


@pytest.mark.parametrize(("stream", "path", "field"), SESSIONS)
class TestHistoryThatIsNotKept:
    """Days before a cutoff are refused, which is not about the keys."""

    @staticmethod
    def refused(path: str, day: str) -> str:
        return (
            "Amplitude answered HTTP 403 (Unspecified Error: Date too far back) to "
            f"/api/2/{path} for {day}: the project's plan keeps no history as old as that. Days "
            "before the first one that can be read have no records."
        )

    @staticmethod
    def first_day(path: str, day: str) -> str:
        return f"/api/2/{path}: the first day of the project's history that could be read is {day}."

    def test_given_days_before_it_when_read_then_the_log_names_the_first_that_can_be_read(
        self, stream: str, path: str, field: str
    ) -> None:
        asked = days("2023-12-30", "2024-01-03")
        with HttpMocker() as http:
            for day in asked[:2]:
                get(http, path, window(day, day), TOO_FAR_BACK)
            for day in asked[2:]:
                x = "0s-60s" if stream == "session_lengths" else f"{day}T00:00:00"
                get(http, path, window(day, day), series([x], [7]))
            output = read_stream(stream, config(start_date=f"{asked[0]}T00:00:00Z", num_workers=1))
        assert [(r["date"], r[field]) for r in in_order(output, "date")] == [
            (day, 7) for day in asked[2:]
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}
        assert [line for line in logged(output) if f"/api/2/{path}" in line] == [
            self.refused(path, "2023-12-30"),
            self.first_day(path, "2024-01-01"),
        ]

    def test_given_refusals_and_answers_out_of_order_when_read_then_every_answered_day_arrives(
        self, stream: str, path: str, field: str
    ) -> None:
        """One worker, so that the order is certain: as two have it, one of which is late."""
        asked = days("2023-12-30", "2024-01-03")
        with HttpMocker() as http:
            for day in asked:
                x = "0s-60s" if stream == "session_lengths" else f"{day}T00:00:00"
                is_kept = day not in (asked[0], asked[2])
                get(http, path, window(day, day), series([x], [7]) if is_kept else TOO_FAR_BACK)
            output = read_stream(stream, config(start_date=f"{asked[0]}T00:00:00Z", num_workers=1))
        assert [(r["date"], r[field]) for r in in_order(output, "date")] == [
            ("2023-12-31", 7),
            ("2024-01-02", 7),
            ("2024-01-03", 7),
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}
        assert [line for line in logged(output) if f"/api/2/{path}" in line] == [
            self.refused(path, "2023-12-30"),
            self.first_day(path, "2023-12-31"),
            self.first_day(path, "2024-01-02"),
        ]

    def test_given_nothing_but_days_before_it_when_read_then_there_are_no_records_and_it_is_logged(
        self, stream: str, path: str, field: str
    ) -> None:
        with HttpMocker() as http:
            for day in DAYS:
                get(http, path, window(day, day), TOO_FAR_BACK)
            output = read_stream(stream, config(num_workers=1), {"date": "2024-01-01"})
        assert records(output) == []
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-01"}
        assert [line for line in logged(output) if f"/api/2/{path}" in line] == [
            self.refused(path, "2024-01-01")
        ]


def test_given_a_range_before_the_history_when_read_then_start_date_is_to_be_changed() -> None:
    with HttpMocker() as http:
        get(http, "users", {**WHOLE, "m": "active", "i": "1", "g": "country"}, TOO_FAR_BACK)
        output = read_stream("active_users", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION)
    assert records(output) == []
    assert first_error(output) == (
        "Amplitude answered HTTP 403 (Unspecified Error: Date too far back) to /api/2/users for "
        "20240101 to 20240103: the project's plan keeps no history as old as that. Set Start Date "
        "(start_date) to a later day.",
        FailureType.config_error,
    )


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
            (["0s-60s", None], "x value 2 is null"),
            (["0s-60s", {}], "x value 2 is an empty object"),
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
                        "Jan 03, 2024": [cell(9, 9), cell(9, 9, True)],
                        "Jan 01, 2024": [cell(8, 8), cell(7, 8), cell(3, 8), cell(1, 8, True)],
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
        "name", ["Feb 29", "Jan 4", "Dec 31", "2023-01-03", "Jan 02, 2023", "Jan 003", "Week 1"]
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

    def test_given_a_cohort_of_90_days_when_read_then_no_day_that_is_yet_to_come_arrives(
        self,
    ) -> None:
        cells = money(110, 37, 781.39, *range(1, 181))
        with HttpMocker() as http:
            get(
                *(
                    http,
                    "revenue/ltv",
                    {"start": "20231005", "end": "20240103", "m": "2", "i": "1"},
                ),
                recorded_cohorts(
                    # The day after tomorrow is none of a cohort's, unless Amplitude says so.
                    {"Oct 05": cells, "Dec 31": cells, "Jan 03": cells},
                    complete={"Dec 31": final(1, 2, 6), "Oct 05": final(*range(1, 90))},
                ),
            )
            output = read_stream("revenue_ltv", config(start_date="2023-10-05T00:00:00Z"))
        assert in_order(output, "cohort_date", "day_number") == [
            *(revenue_row("2023-10-05", n, n, 110, 37, 781.39, n < 90) for n in range(1, 91)),
            *(
                revenue_row("2023-12-31", n, n, 110, 37, 781.39, n in (1, 2, 6))
                for n in (1, 2, 3, 4, 6)
            ),
            {
                name: value
                for name, value in revenue_row("2024-01-03", 1, 1, 110, 37, 781.39, False).items()
                if name != "is_complete"
            },
        ]
        assert output.errors == []
        assert final_state(output) == {"cohort_date": "2024-01-03"}

    def test_given_a_project_east_of_utc_when_read_then_its_day_that_has_begun_arrives(
        self,
    ) -> None:
        asked = {"start": "20240102", "end": "20240104", "m": "2", "i": "1"}
        settings = config(
            start_date="2024-01-02T00:00:00Z", project_timezone="Pacific/Kiritimati"
        )  # where it is two o'clock on the 4th
        with HttpMocker() as http:
            sent = recorded_cohorts({"Jan 02": money(4, 1, 6, 1, 2, 3)})
            get(http, "revenue/ltv", asked, sent)
            output = read_stream("revenue_ltv", settings)
        assert [(r["day_number"], r["revenue"]) for r in in_order(output, "day_number")] == [
            (1, 1),
            (2, 2),
            (3, 3),
        ]
        assert output.errors == []

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
        with HttpMocker() as http:
            sent = (recorded_cohorts({"Jan 01": money(1, 1, 5, r)}) for r in (4, 5))
            get(http, "revenue/ltv", self.LTV, *sent)
            first = read_stream("revenue_ltv", config())
            second = read_stream("revenue_ltv", config(), final_state(first))
        found = [r["revenue"] for r in records(first) + records(second) if r["day_number"] == 1]
        assert found == [4, 5]

    @pytest.mark.parametrize(
        ("start", "now", "named", "expected"),
        [
            (
                "2023-12-30",
                "2024-01-02",
                ["Jan 02", "Jan 01", "Dec 31", "Dec 30"],
                ["2024-01-02", "2024-01-01", "2023-12-31", "2023-12-30"],
            ),
            (
                "2024-02-28",
                "2024-03-01",
                ["Mar 1", "Feb 29", "Feb 28"],
                ["2024-03-01", "2024-02-29", "2024-02-28"],
            ),
        ],
        ids=["new year", "leap day"],
    )
    def test_given_dates_without_a_year_when_read_then_it_is_that_of_the_window(
        self, standing_clock: Any, start: str, now: str, named: list[str], expected: list[str]
    ) -> None:
        standing_clock.move_to(f"{now}T12:00:00Z")
        params = {**window(start, now), "m": "2", "i": "1"}
        values = {name: money(9, 1, 5, n) for n, name in enumerate(named)}
        with HttpMocker() as http:
            get(http, "revenue/ltv", params, cohorts(values))
            output = read_stream("revenue_ltv", config(start_date=f"{start}T00:00:00Z"))
        firsts = [r for r in records(output) if r["day_number"] == 1]
        assert [(r["cohort_date"], r["revenue"]) for r in firsts] == [
            (day, n) for n, day in enumerate(expected)
        ]


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
        gap = unreadable("events/segmentation", WHOLE, "1 of 3 dates are missing: 2024-01-03")[0]
        assert any(str(m).startswith(gap) for m in messages)
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
