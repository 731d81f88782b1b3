"""Reports: what is asked for and stored, what each request costs, and what is refused.

Requests are matched exactly, and states asserted literally; it is noon of 2024-01-03 in UTC.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import date, timedelta
from functools import cache
from typing import Any, ClassVar
from urllib.parse import urlencode

import pytest
import requests_mock
from airbyte_cdk.models import FailureType, Status, SyncMode
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
)
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from airbyte_cdk.test.state_builder import StateBuilder
from jsonschema import Draft7Validator

from source_amplitude import SourceAmplitude
from source_amplitude.components import SegmentationExtractor, refuse_unusable
from source_amplitude.validation import refuse_invalid
from unit_tests.helpers import (
    AUTHORIZATION,
    answer,
    config,
    days,
    final_state,
    first_error,
    logged,
    read_stream,
    records,
    refusal,
)
from unit_tests.test_components import response
from unit_tests.test_dashboard_streams import TODAY, WHOLE, event, series
from unit_tests.test_manifest import MANIFEST
from unit_tests.test_report_shapes import reason
from unit_tests.test_validation import complaint, package, two_files

API = "https://amplitude.com/api"
ALL_DAYS = days("2023-10-01", "2024-01-03")
DAYS = days("2024-01-01", "2024-01-03")
LIMIT = {"limit": "1000"}
BY_COUNTRY = {
    "kind": "segmentation",
    "events": ["Signed Up"],
    "metric": "totals",
    "interval": "day",
    "group_by": ["country"],
}
SIGNUPS = {"e": event("Signed Up"), "m": "totals", "i": "1", "g": "country", **LIMIT}
COUNTRIES = series(DAYS, [3, 2, 1], [1, 0, 4], seriesLabels=["Germany", "(none)"])
OF_GENRE = '{"event_type": "Song Played", "group_by": [{"type": "event", "value": "genre"}]}'

JANUARY_MONDAYS = ["2024-01-08", "2024-01-15", "2024-01-22", "2024-01-29"]
TWICE = "2 series, two of which have the same label"

pytestmark = pytest.mark.usefixtures("standing_clock")


def reports(**queries: Mapping[str, Any]) -> dict[str, Any]:
    """A config with a report for each query."""
    return config(reports=[{"name": name, "query": query} for name, query in queries.items()])


def get(http: HttpMocker, path: str, params: Mapping[str, Any], *answers: HttpResponse) -> None:
    http.get(HttpRequest(f"{API}/{path}", params, AUTHORIZATION), list(answers))


def segmentation(http: HttpMocker, params: Mapping[str, Any], *answers: HttpResponse) -> None:
    get(http, "2/events/segmentation", params, *answers)


class TestSegmentation:
    def test_given_a_group_by_when_synced_then_one_record_per_day_and_group(self) -> None:
        with HttpMocker() as http:
            segmentation(http, {**SIGNUPS, **WHOLE}, COUNTRIES)
            output = read_stream("report_signups", reports(signups=BY_COUNTRY))
        common = {"event_number": 1, "event": "Signed Up"}
        assert records(output) == [
            {**common, "date": day, "group": group, "value": value, "is_complete": day < DAYS[-1]}
            for group, values in (("Germany", [3, 2, 1]), ("(none)", [1, 0, 4]))
            for day, value in zip(DAYS, values, strict=True)
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}
        schema = MANIFEST["schemas"]["report_segmentation"]
        for record in records(output):
            Draft7Validator(schema).validate(record)
            assert record.keys() | {"project_name"} == schema["properties"].keys()

    def test_given_a_state_when_synced_then_the_look_back_is_read_again(self) -> None:
        settings = {**reports(signups=BY_COUNTRY), "dashboard_lookback_days": 1}
        window = {"start": "20240101", "end": "20240103"}
        with HttpMocker() as http:
            segmentation(http, {**SIGNUPS, **window}, COUNTRIES)
            state = {"date": "2024-01-02"}
            output = read_stream("report_signups", {**settings, "start_date": "2023-12-01"}, state)
        assert {r["date"] for r in records(output)} == {*DAYS}
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_nothing_but_an_event_when_synced_then_its_users_are_counted_per_day(
        self,
    ) -> None:
        asked = {"e": event("Signed Up"), "m": "uniques", "i": "1", **LIMIT, **WHOLE}
        live = series(DAYS, [3, 2, 1], seriesLabels=[0], seriesMeta=[{"segmentIndex": 0}])
        with HttpMocker() as http:
            segmentation(http, asked, live)
            query = {"kind": "segmentation", "events": ["Signed Up"]}
            output = read_stream("report_x", reports(x=query))
        assert [(r["group"], r["value"]) for r in records(output)] == [
            ("(all)", 3),
            ("(all)", 2),
            ("(all)", 1),
        ]

    @pytest.mark.parametrize(
        ("query", "labels", "groups"),
        [
            ({}, {"seriesLabels": [0], "seriesMeta": [{"segmentIndex": 0}]}, ["(all)"]),
            ({}, {"seriesLabels": [0]}, ["(all)"]),
            ({}, {}, ["(all)"]),
            ({}, {"seriesLabels": ["a name that nobody needs"]}, ["(all)"]),
            (
                {"g": "country"},
                {"seriesLabels": ["US", "(none)"], "seriesMeta": [{"segmentIndex": 0}] * 2},
                ["US", "(none)"],
            ),
            ({"g": "country"}, {"seriesMeta": ["US", "(none)"]}, ["US", "(none)"]),
            ({"e": OF_GENRE}, {"seriesLabels": [[0, "Jazz"], [0, "(none)"]]}, ["Jazz", "(none)"]),
            (
                {"e": OF_GENRE, "g": "plan"},
                {"seriesLabels": [[0, "Jazz; free"], [0, "Pop; free"]]},
                ["Jazz; free", "Pop; free"],
            ),
            (
                {"g": "country", "g2": "platform"},
                {"seriesLabels": [["US", "iOS"], ["FR", "web"]]},
                ["US; iOS", "FR; web"],
            ),
            ({"g": "a", "g2": "b"}, {"seriesLabels": [[0, "US", "iOS"]]}, ["US; iOS"]),
        ],
    )
    def test_given_labels_of_any_form_when_extracted_then_they_are_the_groups(
        self, query: dict[str, str], labels: dict[str, Any], groups: list[str]
    ) -> None:
        rows = [[n, n + 1, n + 2] for n in range(len(groups))]
        found = self.extract(query, {"xValues": DAYS, "series": rows, **labels})
        assert [(r["group"], r["date"], r["value"]) for r in found] == [
            (group, day, value)
            for group, row in zip(groups, rows, strict=True)
            for day, value in zip(DAYS, row, strict=True)
        ]

    @pytest.mark.parametrize(
        "xs",
        [
            [f"{day}T00:00:00" for day in DAYS],
            ["Jan 1, 2024", "Jan 02, 2024", "Jan 3, 2024"],
            ["Jan 1", "Jan 2", "Jan 3"],
        ],
    )
    def test_given_days_of_any_form_when_extracted_then_they_are_days(self, xs: list[str]) -> None:
        found = self.extract({}, {"xValues": xs, "series": [[3, 2, 1]], "seriesLabels": [0]})
        assert [(r["date"], r["value"]) for r in found] == [*zip(DAYS, (3, 2, 1), strict=True)]

    def test_given_days_in_another_order_when_extracted_then_each_keeps_its_number(self) -> None:
        found = self.extract({}, {"xValues": DAYS[::-1], "series": [[3, 2, 1]]})
        assert {r["date"]: r["value"] for r in found} == dict(zip(DAYS, (1, 2, 3), strict=True))

    BY_INDEX: ClassVar[list[dict[str, int]]] = [{"eventIndex": 1}, {"eventIndex": 0}]

    @pytest.mark.parametrize(
        ("query", "labels"),
        [
            ({"g": "os"}, {"seriesLabels": [[1, "iOS"], [0, "iOS"]]}),
            ({}, {"seriesLabels": [[1], [0]]}),
            ({}, {"seriesLabels": [0, 0], "seriesMeta": BY_INDEX}),
            ({}, {"seriesMeta": BY_INDEX}),
            ({"g": "os"}, {"seriesLabels": ["iOS", "iOS"], "seriesMeta": BY_INDEX}),
            ({}, {"seriesLabels": [1, 0]}),
        ],
    )
    def test_given_two_events_when_extracted_then_each_has_its_numbers(
        self, query: dict[str, str], labels: dict[str, Any]
    ) -> None:
        data = {"xValues": DAYS, "series": [[3, 2, 1], [6, 5, 4]], **labels}
        found = self.extract({**query, "e2": event("b")}, data)
        assert sorted((r["event_number"], r["event"], r["date"], r["value"]) for r in found) == [
            *((1, "a", day, n) for day, n in zip(DAYS, (6, 5, 4), strict=True)),
            *((2, "b", day, n) for day, n in zip(DAYS, (3, 2, 1), strict=True)),
        ]

    @pytest.mark.parametrize(
        "data",
        [
            {"series": [[3, 2, 1]], "seriesMeta": [{"eventIndex": 1}]},
            {"series": [[3, 2, 1]], "seriesLabels": [[1]]},
            {"series": [[None] * 3, [3, 2, 1]], "seriesLabels": [0, 1]},
        ],
    )
    def test_given_one_of_two_events_is_quiet_when_extracted_then_it_is_0(
        self, data: dict[str, Any]
    ) -> None:
        found = self.extract({"e2": event("b")}, {"xValues": DAYS, **data})
        assert [(r["event_number"], r["date"], r["value"]) for r in found] == [
            *((1, day, 0) for day in DAYS),
            *((2, day, n) for day, n in zip(DAYS, (3, 2, 1), strict=True)),
        ]

    def test_given_groups_and_one_of_two_events_is_quiet_when_extracted_then_it_has_none(
        self,
    ) -> None:
        data = {"xValues": DAYS, "series": [[3, 2, 1]], "seriesLabels": [[1, "iOS"]]}
        found = self.extract({"e2": event("b"), "g": "os"}, data)
        assert [(r["event_number"], r["event"], r["group"], r["value"]) for r in found] == [
            (2, "b", "iOS", value) for value in (3, 2, 1)
        ]

    def test_given_two_events_when_synced_then_both_are_asked_for(self) -> None:
        query = {
            "kind": "segmentation",
            "events": ["Signed Up", '{"event_type": "Song Played"}'],
        }
        asked = {
            **{"e": event("Signed Up"), "e2": event("Song Played"), "m": "uniques", "i": "1"},
            **LIMIT,
        }
        answered = series(DAYS, [3, 2, 1], [6, 5, 4], seriesMeta=self.BY_INDEX)
        with HttpMocker() as http:
            segmentation(http, {**asked, **WHOLE}, answered)
            output = read_stream("report_x", reports(x=query))
        assert [(r["event_number"], r["event"], r["value"]) for r in records(output)] == [
            *[(1, "Signed Up", n) for n in (6, 5, 4)],
            *[(2, "Song Played", n) for n in (3, 2, 1)],
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_all_options_when_synced_then_the_query_has_them(self) -> None:
        segment = '[{"prop": "country", "op": "is", "values": ["Germany"]}]'
        query = {
            **{"kind": "segmentation", "events": ["Song Played", OF_GENRE], "metric": "average"},
            "group_by": ["gp:plan", "platform"],
            "filters": [
                {"property": "genre", "values": ["Jazz", "Pop"]},
                {"property": "gp:plan", "operator": "is not", "values": ["(none)"]},
                {"property": "country", "operator": "contains", "values": ["Ger"]},
                {"property": "countrywide", "values": ["x"]},
            ],
            "segment": segment,
        }
        conditions = [
            ("event", "genre", "is", ["Jazz", "Pop"]),
            ("user", "gp:plan", "is not", ["(none)"]),
            ("user", "country", "contains", ["Ger"]),
            ("event", "countrywide", "is", ["x"]),
        ]
        names = ("subprop_type", "subprop_key", "subprop_op", "subprop_value")
        filters = [dict(zip(names, condition, strict=True)) for condition in conditions]
        asked = {
            "e": json.dumps({"event_type": "Song Played", "filters": filters}),
            **{"e2": OF_GENRE, "m": "average", "i": "1", "g": "gp:plan", "g2": "platform"},
            **{"s": segment, **LIMIT, **TODAY},
        }
        labels = [[0, "free; iOS"], [1, "Jazz; free; iOS"]]
        settings = {**reports(x=query), "start_date": "2024-01-03"}
        with HttpMocker() as http:
            segmentation(http, asked, series(DAYS[-1:], [0.5], [2], seriesLabels=labels))
            output = read_stream("report_x", settings)
        assert [(r["event_number"], r["group"], r["value"]) for r in records(output)] == [
            (1, "free; iOS", 0.5),
            (2, "Jazz; free; iOS", 2),
        ]

    def test_given_a_sum_of_a_property_when_synced_then_the_property_is_no_group(self) -> None:
        query = {"kind": "segmentation", "events": [OF_GENRE], "metric": "sums"}
        with HttpMocker() as http:
            asked = {"e": OF_GENRE, "m": "sums", "i": "1", **LIMIT, **WHOLE}
            segmentation(http, asked, series(DAYS, [1.5, 2, 0], seriesLabels=[0]))
            output = read_stream("report_x", reports(x=query))
        assert [(r["group"], r["value"]) for r in records(output)] == [
            ("(all)", 1.5),
            ("(all)", 2),
            ("(all)", 0),
        ]

    NOTHING: ClassVar[list[dict[str, Any]]] = [
        {"xValues": DAYS, "series": [], "seriesLabels": [], "seriesMeta": []},
        {"xValues": DAYS, "series": []},
        {"xValues": DAYS, "series": [[None, None, None]], "seriesLabels": [0]},
        {"xValues": DAYS, "series": [], "seriesLabels": [0]},
    ]

    @pytest.mark.parametrize("nothing", NOTHING)
    def test_given_nothing_in_the_window_when_synced_then_every_day_is_0(
        self, nothing: dict[str, Any]
    ) -> None:
        query = {name: value for name, value in BY_COUNTRY.items() if name != "group_by"}
        asked = {name: value for name, value in SIGNUPS.items() if name != "g"}
        with HttpMocker() as http:
            segmentation(http, {**asked, **WHOLE}, answer(nothing))
            output = read_stream("report_signups", reports(signups=query))
        common = {"event_number": 1, "event": "Signed Up", "group": "(all)", "value": 0}
        assert records(output) == [
            {"date": day, **common, "is_complete": day < DAYS[-1]} for day in DAYS
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}

    @pytest.mark.parametrize("nothing", NOTHING[:2])
    def test_given_groups_and_nothing_in_the_window_when_synced_then_no_records_and_no_error(
        self, nothing: dict[str, Any]
    ) -> None:
        state = {"date": "2024-01-02"}
        settings = {**reports(signups=BY_COUNTRY), "dashboard_lookback_days": 1}
        with HttpMocker() as http:
            segmentation(http, {**SIGNUPS, **WHOLE}, answer(nothing))
            output = read_stream("report_signups", settings, state)
        assert records(output) == []
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-02"}

    @pytest.mark.parametrize(
        ("query", "found", "count", "labels"),
        [
            ({"g": "os"}, "2 series but 1 seriesLabels", 2, {"seriesLabels": [0]}),
            ({"g": "os"}, "2 series but no labels", 2, {}),
            ({"g": "os"}, "label 1 is a number, not the text of a group", 1, {"seriesLabels": [0]}),
            (
                {"g": "os"},
                "label 2 is a list, not the text of a group",
                2,
                {"seriesLabels": [[0, "iOS"], [0]]},
            ),
            (
                {"g": "os"},
                "label 1 is an object, not the text of a group",
                1,
                {"seriesMeta": [{"segmentIndex": 0}]},
            ),
            ({"g": "os"}, TWICE, 2, {"seriesLabels": ["a", "a"]}),
            ({"g": "os", "g2": "plan"}, TWICE, 2, {"seriesLabels": [["a", "b"], "a; b"]}),
            ({}, TWICE, 2, {"seriesLabels": [0, 1]}),
            ({"e2": event("b")}, "nothing says which event series 1 is of", 2, {}),
            (
                {"e2": event("b")},
                "nothing says which event series 1 is of",
                2,
                {"seriesLabels": [0, 0], "seriesMeta": [{"segmentIndex": 0}] * 2},
            ),
            (
                {"e2": event("b"), "g": "os"},
                "nothing says which event series 1 is of",
                2,
                {"seriesLabels": ["iOS", "Android"]},
            ),
            (
                {"e2": event("b")},
                "nothing says which event series 2 is of",
                2,
                {"seriesMeta": [{"eventIndex": 0}, {"eventIndex": 2}]},
            ),
            (
                {"e2": event("b")},
                "nothing says which event series 2 is of",
                2,
                {"seriesMeta": [{"eventIndex": 0}], "seriesLabels": [0, 0]},
            ),
            ({"e2": event("b")}, TWICE, 2, {"seriesMeta": [{"eventIndex": 0}, {"eventIndex": 0}]}),
        ],
    )
    def test_given_series_that_cannot_be_told_apart_when_extracted_then_it_fails(
        self, query: dict[str, str], found: str, count: int, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": DAYS, "series": [[1, 2, 3]] * count, **labels}
        assert self.reason(query, data) == found

    MONDAYS_ASKED: ClassVar[dict[str, str]] = {"i": "7", "start": "20231218", "end": "20240103"}
    MONTHS_ASKED: ClassVar[dict[str, str]] = {"i": "30", "start": "20231201", "end": "20240103"}

    @pytest.mark.parametrize(
        ("query", "xs", "found"),
        [
            ({}, DAYS[1:], "1 of 3 dates are missing: 2024-01-01"),
            ({}, [*DAYS[:2], DAYS[1]], "a date stands twice"),
            ({}, [*DAYS[:2], 20240103], "date 3 is a number, which was not asked for"),
            (
                {},
                [*DAYS[:2], "2024-01-03T05:00:00"],
                'date 3 is "2024-01-03T05:00:00", which was not asked for',
            ),
            (
                MONDAYS_ASKED,
                ["2023-12-18", "2023-12-25", "2023-12-31"],
                'date 3 is "2023-12-31", which was not asked for',
            ),
            (
                MONDAYS_ASKED,
                ["2023-12-18", "2024-01-01"],
                "1 of 3 dates are missing: 2023-12-25",
            ),
            (
                MONTHS_ASKED,
                ["2023-12-02", "2024-01-01"],
                'date 1 is "2023-12-02", which was not asked for',
            ),
        ],
    )
    def test_given_dates_that_were_not_asked_for_when_extracted_then_it_fails(
        self, query: dict[str, str], xs: list[Any], found: str
    ) -> None:
        assert self.reason(query, {"xValues": xs, "series": [[1] * len(xs)]}) == found

    @pytest.mark.parametrize(("count", "warned"), [(999, False), (1000, True)])
    def test_given_as_many_groups_as_there_can_be_when_extracted_then_it_is_logged(
        self, count: int, warned: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        labels = [f"City {n}" for n in range(count)]
        data = {"xValues": DAYS, "series": [[1, 2, 3]] * count, "seriesLabels": labels}
        assert len(self.extract({"g": "city"}, data)) == 3 * count
        expected = (
            "The report x has 1,000 groups for 20240101 to 20240103, the most that Amplitude "
            "gives: others are missing. Group by a property with fewer values, or count fewer "
            "users."
        )
        assert caplog.messages == ([expected] if warned else [])

    def reason(self, query: dict[str, str], data: dict[str, Any]) -> str:
        first, last = (query.get(name, WHOLE[name]) for name in ("start", "end"))
        asked = f"/api/2/events/segmentation for {first} to {last}"
        return reason(asked, lambda: self.extract(query, data))

    @staticmethod
    def extract(query: dict[str, str], data: dict[str, Any]) -> list[Any]:
        asked = {"e": event("a"), "m": "uniques", "i": "1", **WHOLE, **query}
        url = f"https://amplitude.com/api/2/events/segmentation?{urlencode(asked)}"
        answered = response(json.dumps({"data": data}).encode(), url=url)
        extractor = SegmentationExtractor(parameters={"report": {"name": "x"}})
        return list(extractor.extract_records(answered))


class TestWeeksAndMonths:
    WEEKS: ClassVar[dict[str, Any]] = {
        **{"kind": "segmentation", "events": ["Signed Up"], "interval": "week"},
    }

    def test_given_a_start_within_a_week_when_synced_then_whole_weeks_are_asked_for(self) -> None:
        asked = {"e": event("Signed Up"), "m": "uniques", "i": "7", **LIMIT}
        mondays = ["2023-11-20", "2023-11-27", "2023-12-04", "2023-12-11"]
        later = ["2023-12-18", "2023-12-25", "2024-01-01"]
        with HttpMocker() as http:
            window = {"start": "20231120", "end": "20231217"}
            segmentation(http, {**asked, **window}, series(mondays, [1, 2, 3, 4]))
            window = {"start": "20231218", "end": "20240103"}
            segmentation(http, {**asked, **window}, series(later, [5, 6, 7], seriesLabels=[0]))
            settings = {**reports(x=self.WEEKS), "start_date": "2023-11-22"}
            output = read_stream("report_x", settings)
        found = sorted((r["date"], r["value"], r["is_complete"]) for r in records(output))
        assert found == [
            (monday, value, monday < "2024-01-01")
            for value, monday in enumerate([*mondays, *later], start=1)
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-01"}

    @pytest.mark.parametrize(
        ("look_back", "first"), [(0, "2024-01-01"), (1, "2023-12-25"), (8, "2023-12-18")]
    )
    def test_given_a_state_when_synced_then_the_week_of_the_look_back_is_read_again(
        self, look_back: int, first: str
    ) -> None:
        settings = {**reports(x=self.WEEKS), "start_date": "2023-01-01"}
        settings |= {"dashboard_lookback_days": look_back}
        windows = windows_of("report_x", settings, {"date": "2024-01-01"})
        assert windows == [(first, "2024-01-03")]

    @pytest.mark.parametrize(
        ("more", "length"),
        [
            ({}, 28),
            ({"events": ["a", "b"], "group_by": ["country", "platform"]}, 7),
        ],
    )
    def test_given_a_dear_query_when_synced_then_its_windows_are_whole_weeks_still(
        self, more: dict[str, Any], length: int
    ) -> None:
        settings = {**reports(x={**self.WEEKS, **more}), "start_date": "2023-01-05"}
        windows = windows_of("report_x", settings, {})
        assert windows[0][0] == "2023-01-02"
        starts, ends = ([date.fromisoformat(w[n]) for w in windows] for n in (0, 1))
        assert {day.weekday() for day in starts} == {0}
        lengths = [(end - start).days + 1 for start, end in zip(starts, ends, strict=True)]
        assert {*lengths[:-1]} == {length}
        assert ends[-1] == date(2024, 1, 3)

    def test_given_an_end_date_when_synced_then_its_week_is_whole(self) -> None:
        settings = {**reports(x=self.WEEKS), "start_date": "2023-12-06", "end_date": "2023-12-13"}
        assert windows_of("report_x", settings, {}) == [("2023-12-04", "2023-12-17")]

    @pytest.mark.parametrize(
        ("interval", "i", "today", "dates"),
        [
            ("week", "7", "2024-01-29", ["2024-01-01", *JANUARY_MONDAYS]),
            ("month", "30", "2024-02-01", ["2024-01-01", "2024-02-01"]),
        ],
    )
    def test_given_a_first_day_when_synced_then_the_last_window_ends_with_it(
        self, standing_clock: Any, interval: str, i: str, today: str, dates: list[str]
    ) -> None:
        standing_clock.move_to(f"{today}T12:00:00Z")
        asked = {"e": event("Signed Up"), "m": "uniques", "i": i, **LIMIT}
        window = {"start": "20240101", "end": today.replace("-", "")}
        settings = {**reports(x={**self.WEEKS, "interval": interval}), "start_date": "2024-01-04"}
        with HttpMocker() as http:
            segmentation(http, {**asked, **window}, series(dates, [*range(len(dates))]))
            output = read_stream("report_x", settings)
        assert [(r["date"], r["value"], r["is_complete"]) for r in records(output)] == [
            (day, value, day < today) for value, day in enumerate(dates)
        ]
        assert output.errors == []
        assert final_state(output) == {"date": today}

    MONTHS: ClassVar[dict[str, Any]] = {
        **{"kind": "segmentation", "events": ["Signed Up"], "interval": "month"},
        "group_by": ["country"],
    }
    BY_MONTH: ClassVar[dict[str, Any]] = {
        **{"e": event("Signed Up"), "m": "uniques", "i": "30", "g": "country"},
        **LIMIT,
    }

    def month(self, http: HttpMocker, first: str, last: str) -> None:
        window = {"start": first.replace("-", ""), "end": last.replace("-", "")}
        answered = series([first], [3], seriesLabels=["Germany"])
        segmentation(http, {**self.BY_MONTH, **window}, answered)

    def test_given_months_when_synced_then_each_is_asked_for_by_itself_and_whole(self) -> None:
        with HttpMocker() as http:
            self.month(http, "2023-11-01", "2023-11-30")
            self.month(http, "2023-12-01", "2023-12-31")
            self.month(http, "2024-01-01", "2024-01-03")
            output = read_stream("report_x", {**reports(x=self.MONTHS), "start_date": "2023-11-17"})
        found = sorted((r["date"], r["is_complete"]) for r in records(output))
        assert found == [("2023-11-01", True), ("2023-12-01", True), ("2024-01-01", False)]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-01"}

    def test_given_a_state_when_synced_then_the_month_of_the_look_back_is_read_again(self) -> None:
        settings = {**reports(x=self.MONTHS), "start_date": "2023-01-01"}
        with HttpMocker() as http:
            self.month(http, "2023-12-01", "2023-12-31")
            self.month(http, "2024-01-01", "2024-01-03")
            output = read_stream("report_x", settings, {"date": "2024-01-01"})
        assert sorted(r["date"] for r in records(output)) == ["2023-12-01", "2024-01-01"]
        assert final_state(output) == {"date": "2024-01-01"}

    def test_given_an_end_date_when_synced_then_its_month_is_whole(self) -> None:
        settings = {**reports(x=self.MONTHS), "start_date": "2023-10-05"}
        with HttpMocker() as http:
            self.month(http, "2023-10-01", "2023-10-31")
            self.month(http, "2023-11-01", "2023-11-30")
            output = read_stream("report_x", {**settings, "end_date": "2023-11-02"})
        assert sorted(r["date"] for r in records(output)) == ["2023-10-01", "2023-11-01"]
        assert final_state(output) == {"date": "2023-11-01"}


STEPS = ["Cart Viewed", "Checkout Started"]


CONVERTED = {"median_seconds": 1.5, "average_seconds": 1.5}


def funnel(*xs: str, group: str = "iOS") -> HttpResponse:
    """An answer of the recorded shape to two steps: four users a day, one of whom takes both."""
    days = {"xValues": xs, "formattedXValues": ["Jan 3"] * len(xs)}
    times = {"series": [[0, 1500]] * len(xs), **days}
    found = {
        **{"events": STEPS, "cumulativeRaw": [4, 1], "cumulative": [1.0, 0.25]},
        **{"stepByStep": [1.0, 0.25], "dayFunnels": {"series": [[4, 1]] * len(xs), **days}},
        **{"dayMedianTransTimes": times, "dayAvgTransTimes": times},
        **{"medianTransTimes": [0, 1500], "avgTransTimes": [0, 1500], "groupValue": group},
        **{"meta": {"segmentIndex": 0}, "propsum": []},
    }
    return HttpResponse(json.dumps({"data": [found], "numSeries": 1, "wasCached": False}))


class TestFunnels:
    def test_given_all_options_when_synced_then_the_query_has_them(self) -> None:
        segment = '[{"prop": "country", "op": "is", "values": ["Germany"]}]'
        query = {
            **{"kind": "funnel", "events": STEPS, "mode": "sequential", "users": "new"},
            **{"conversion_window_days": 2.0, "group_by": ["platform"], "segment": segment},
            "filters": [{"property": "gp:plan", "operator": "is not", "values": ["free"]}],
        }
        condition = ("user", "gp:plan", "is not", ["free"])
        names = ("subprop_type", "subprop_key", "subprop_op", "subprop_value")
        filters = [dict(zip(names, condition, strict=True))]
        asked = {
            "e": [json.dumps({"event_type": step, "filters": filters}) for step in STEPS],
            **{"mode": "sequential", "n": "new", "cs": "172800", "i": "1", "g": "platform"},
            **{"s": segment, **LIMIT, **TODAY},
        }
        settings = {**reports(checkout=query), "start_date": "2024-01-03"}
        with HttpMocker() as http:
            get(http, "2/funnels", asked, funnel("2024-01-03"))
            output = read_stream("report_checkout", settings)
        assert [(r["date"], r["step"], r["group"], r["users"]) for r in records(output)] == [
            ("2024-01-03", 1, "iOS", 4),
            ("2024-01-03", 2, "iOS", 1),
        ]
        assert final_state(output) == {"date": "2024-01-03"}

    QUERY: ClassVar[dict[str, Any]] = {
        **{"kind": "funnel", "events": STEPS, "conversion_window_days": 2},
    }
    ASKED: ClassVar[dict[str, Any]] = {
        **{"e": [event(step) for step in STEPS], "mode": "ordered", "n": "active"},
        **{"cs": "172800", "i": "1", **LIMIT},
    }

    @pytest.mark.parametrize(
        ("zone", "today", "complete"),
        [
            ("UTC", "2024-01-03", {"2023-12-30", "2023-12-31"}),
            # Two o'clock of the 4th.
            ("Pacific/Kiritimati", "2024-01-04", {"2023-12-30", "2023-12-31", "2024-01-01"}),
        ],
    )
    def test_given_days_when_synced_then_those_whose_conversion_window_is_over_are_complete(
        self, zone: str, today: str, complete: set[str]
    ) -> None:
        wanted = days("2023-12-30", today)
        window = {"start": "20231230", "end": today.replace("-", "")}
        settings = {**reports(x=self.QUERY), "start_date": "2023-12-30", "project_timezone": zone}
        with HttpMocker() as http:
            get(http, "2/funnels", {**self.ASKED, **window}, funnel(*wanted, group=""))
            output = read_stream("report_x", settings)
        assert records(output) == [
            {
                **{"date": day, "group": "(all)", "is_complete": day in complete},
                **{"step": step, "event": name, "users": users, "conversion": users / 4},
                **(CONVERTED if step == 2 else {}),
            }
            for day in wanted
            for step, name, users in zip((1, 2), STEPS, (4, 1), strict=True)
        ]
        assert output.errors == []
        assert final_state(output) == {"date": today}
        properties = MANIFEST["schemas"]["report_funnel"]["properties"]
        assert records(output)[1].keys() | {"project_name"} == properties.keys()

    def test_given_nobody_who_took_the_first_step_when_synced_then_no_records_and_no_error(
        self,
    ) -> None:
        nobody = HttpResponse(json.dumps({"data": [], "numSeries": 0}))
        settings = {**reports(x=self.QUERY), "dashboard_lookback_days": 0}
        with HttpMocker() as http:
            get(http, "2/funnels", {**self.ASKED, **WHOLE}, nobody)
            output = read_stream("report_x", settings, {"date": "2024-01-03"})
        assert records(output) == []
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_a_contradiction_when_synced_then_nothing_is_stored_and_the_state_stays(
        self,
    ) -> None:
        settings = {**reports(x=self.QUERY), "dashboard_lookback_days": 0}
        with HttpMocker() as http:
            get(http, "2/funnels", {**self.ASKED, **WHOLE}, funnel(*DAYS[:2]))
            output = read_stream(
                "report_x",
                settings,
                {"date": "2024-01-02"},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        message, failure_type = first_error(output)
        assert "/api/2/funnels for 20240101 to 20240103" in message
        assert "1 of 3 dates are missing: 2024-01-03" in message
        assert failure_type is FailureType.system_error
        assert records(output) == []
        assert final_state(output) == {"date": "2024-01-02"}

    def test_given_a_state_when_synced_then_the_days_of_the_conversion_window_are_read_again(
        self,
    ) -> None:
        settings = reports(x={"kind": "funnel", "events": STEPS, "group_by": ["platform"]})
        settings |= {"start_date": "2023-01-01", "dashboard_lookback_days": 1}
        windows = windows_of("report_x", settings, {"date": "2024-01-03"})
        # One day of its own, one of the look-back, 30 to convert in.
        assert windows[0][0] == "2023-12-03"
        assert windows[-1][1] == "2024-01-03"


def cohorts(**cells: list[int]) -> HttpResponse:
    """Retention of the recorded shape, newest cohort first: sizes, then users of each day."""
    values = {
        f"Jan {day.removeprefix('d')}, 2024": [
            {
                **{"count": count, "outof": numbers[0], "incomplete": len(numbers) - n <= 2},
                **{"retainedSetId": "r", "dropoffSetId": "d"},
            }
            for n, count in enumerate(numbers)
        ]
        for day, numbers in cells.items()
    }
    found = {"dates": [*values], "values": values, "combined": [{"count": 0, "outof": 0}]}
    return answer({"series": [found], "seriesMeta": [{"segmentIndex": 0, "eventIndex": 0}]})


class TestRetention:
    @pytest.mark.parametrize(
        ("mode", "sent"),
        [({}, {}), ({"mode": "n-day"}, {}), ({"mode": "rolling"}, {"rm": "rolling"})],
    )
    def test_given_new_users_when_synced_then_they_are_followed_up_to_today(
        self, mode: dict[str, str], sent: dict[str, str]
    ) -> None:
        asked = {"se": event("_new"), "re": event("_active"), **sent, "i": "1", **WHOLE}
        answered = cohorts(d03=[0, 0], d02=[7, 7, 2], d01=[5, 5, 3, 1])
        with HttpMocker() as http:
            get(http, "2/retention", asked, answered)
            output = read_stream("report_kept", reports(kept={"kind": "retention", **mode}))
        assert records(output) == [
            {
                **{"cohort_date": day, "day_number": number, "cohort_size": size},
                **{"users": users, "is_complete": is_complete},
            }
            for day, number, size, users, is_complete in (
                ("2024-01-03", 0, 0, 0, False),
                ("2024-01-02", 0, 7, 7, False),
                ("2024-01-02", 1, 7, 2, False),
                ("2024-01-01", 0, 5, 5, True),
                ("2024-01-01", 1, 5, 3, False),
                ("2024-01-01", 2, 5, 1, False),
            )
        ]
        properties = MANIFEST["schemas"]["report_retention"]["properties"]
        assert records(output)[0].keys() | {"project_name"} == properties.keys()
        assert output.errors == []
        assert final_state(output) == {"cohort_date": "2024-01-03"}

    def test_given_brackets_when_synced_then_they_are_numbered_and_followed_to_their_end(
        self,
    ) -> None:
        brackets = "[[0, 1], [1, 90]]"
        query = {
            **{"kind": "retention", "mode": "bracket", "brackets": brackets},
            **{"start_event": "Signed Up", "return_event": '{"event_type": "Song Played"}'},
        }
        asked = {
            **{"se": event("Signed Up"), "re": event("Song Played"), "rm": "bracket"},
            **{"rb": brackets, "i": "1", **TODAY},
        }
        settings = {**reports(kept=query), "start_date": "2024-01-03"}
        with HttpMocker() as http:
            get(http, "2/retention", asked, cohorts(d03=[5, 4, 3, 2]))
            output = read_stream("report_kept", settings)
        assert [(r["day_number"], r["users"]) for r in records(output)] == [(0, 4), (1, 3)]
        assert output.errors == []
        assert final_state(output) == {"cohort_date": "2024-01-03"}
        settings |= {"start_date": "2023-01-01", "dashboard_lookback_days": 1}
        windows = windows_of("report_kept", settings, {"cohort_date": "2024-01-03"})
        # One day of its own, one of the look-back, 90 of the brackets.
        assert windows[0][0] == "2023-10-04"


def composed(xs: list[Any], *numbers: list[int]) -> HttpResponse:
    return answer({"xValues": xs, "series": numbers, "seriesLabels": ["gp:plan"] * len(numbers)})


class TestComposition:
    SETTINGS = reports(plans={"kind": "composition", "property": "gp:plan"})
    # Days are asked for side by side.
    IN_TURN: ClassVar[dict[str, Any]] = {**SETTINGS, "num_workers": 1}

    @staticmethod
    def ask(http: HttpMocker, day: str, *answers: HttpResponse) -> None:
        asked = {"p": "gp:plan", "start": day.replace("-", ""), "end": day.replace("-", "")}
        get(http, "2/composition", asked, *answers)

    def test_given_days_when_synced_then_each_is_asked_for_by_itself(self) -> None:
        with HttpMocker() as http:
            for number, day in enumerate(DAYS):
                self.ask(http, day, composed(["(none)", "premium"], [7, number]))
            output = read_stream("report_plans", self.IN_TURN)
        assert records(output) == [
            {"date": day, "value": value, "users": users, "is_complete": day < DAYS[-1]}
            for number, day in enumerate(DAYS)
            for value, users in (("(none)", 7), ("premium", number))
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}
        schema = MANIFEST["schemas"]["report_composition"]
        for record in records(output):
            Draft7Validator(schema).validate(record)
            assert record.keys() | {"project_name"} == schema["properties"].keys()

    @pytest.mark.parametrize(
        "nothing", [{"xValues": [], "series": [], "seriesLabels": []}, {"series": []}]
    )
    def test_given_a_quiet_day_when_synced_then_it_has_no_records_and_the_others_have(
        self, nothing: dict[str, Any]
    ) -> None:
        with HttpMocker() as http:
            self.ask(http, DAYS[0], composed(["free"], [1]))
            self.ask(http, DAYS[1], answer(nothing))
            self.ask(http, DAYS[2], composed(["free"], [3]))
            output = read_stream("report_plans", self.SETTINGS)
        assert sorted((r["date"], r["users"]) for r in records(output)) == [
            ("2024-01-01", 1),
            ("2024-01-03", 3),
        ]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_nothing_but_quiet_days_when_synced_then_the_state_stays(self) -> None:
        nothing = composed([])
        with HttpMocker() as http:
            for day in DAYS[1:]:
                self.ask(http, day, nothing)
            settings = {**self.SETTINGS, "dashboard_lookback_days": 0}
            output = read_stream("report_plans", settings, {"date": "2024-01-02"})
        assert records(output) == []
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-02"}

    def test_given_days_before_the_history_when_synced_then_they_are_empty_and_logged(self) -> None:
        too_far = refusal(
            403,
            type="unspecified",
            message="Unspecified Error",
            metadata={"details": "Date too far back"},
        )
        with HttpMocker() as http:
            for day in ("2023-12-31", "2024-01-01"):
                self.ask(http, day, too_far)
            for day in DAYS[1:]:
                self.ask(http, day, composed(["free"], [3]))
            output = read_stream("report_plans", {**self.IN_TURN, "start_date": "2023-12-31"})
        assert [r["date"] for r in records(output)] == DAYS[1:]
        assert output.errors == []
        assert final_state(output) == {"date": "2024-01-03"}
        assert [line for line in logged(output) if "history" in line] == [
            "Amplitude answered HTTP 403 (Unspecified Error: Date too far back) to "
            "/api/2/composition for 2023-12-31: the project's plan keeps no history as old as "
            "that. Days before the first one that can be read have no records.",
            "/api/2/composition: the first day of the project's history that could be read is "
            "2024-01-02.",
        ]

    def test_given_values_that_are_no_texts_when_synced_then_they_become_texts(self) -> None:
        settings = {**self.SETTINGS, "start_date": "2024-01-03"}
        with HttpMocker() as http:
            self.ask(http, DAYS[2], composed(["1.10", 2, 2.5, True], [1, 2, 3, 4]))
            output = read_stream("report_plans", settings)
        assert [(r["value"], r["users"]) for r in records(output)] == [
            ("1.10", 1),
            ("2", 2),
            ("2.5", 3),
            ("true", 4),
        ]

    @pytest.mark.parametrize(
        ("xs", "numbers", "found"),
        [
            (["free", None], [[1, 2]], "x value 2 is null"),
            (["free", "free"], [[1, 2]], "an x value stands twice"),
            ([1, "1"], [[1, 2]], "an x value stands twice"),
            ([["free"]], [[1]], "x value 1 is a list"),
            (["free"], [[1, 2]], "1 x values but 2 values in series 1"),
            (["free"], [["1"]], "value 1 of series 1 is a text"),
            (["free"], [[1], [2]], TWICE),
        ],
    )
    def test_given_what_cannot_be_paired_when_synced_then_it_fails_and_the_state_stays(
        self, xs: list[Any], numbers: list[list[Any]], found: str
    ) -> None:
        settings = {**self.SETTINGS, "dashboard_lookback_days": 0}
        with HttpMocker() as http:
            self.ask(http, DAYS[1], composed(xs, *numbers))
            self.ask(http, DAYS[2], composed(["free"], [3]))
            output = read_stream(
                "report_plans",
                settings,
                {"date": "2024-01-02"},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        message, failure_type = first_error(output)
        asked = "/api/2/composition for 20240102 to 20240102"
        assert f"{asked} can't be read without guessing: {found}. " in message
        assert failure_type is FailureType.system_error
        assert [r["date"] for r in records(output)] == ["2024-01-03"]
        assert final_state(output) == {"date": "2024-01-02"}

    def test_given_a_property_that_is_unknown_when_synced_then_the_report_is_named(self) -> None:
        unknown = {"details": "Invalid user property gp:plan"}
        said = "Invalid chart definition: Invalid user property gp:plan"
        settings = {**self.SETTINGS, "start_date": "2024-01-03"}
        with HttpMocker() as http:
            message = "Invalid chart definition"
            self.ask(http, DAYS[2], refusal(400, message=message, metadata=unknown))
            output = read_stream(
                "report_plans", settings, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert first_error(output) == (
            f"Amplitude answered HTTP 400 ({said}). This is about the report plans: mend it in "
            "Reports, or remove it there.",
            FailureType.config_error,
        )

    def test_given_a_state_when_synced_then_the_look_back_is_read_again(self) -> None:
        settings = {**self.SETTINGS, "start_date": "2023-01-01", "dashboard_lookback_days": 1}
        with HttpMocker() as http:
            for day in DAYS[1:]:
                self.ask(http, day, composed(["free"], [3]))
            output = read_stream("report_plans", settings, {"date": "2024-01-03"})
        assert sorted(r["date"] for r in records(output)) == DAYS[1:]
        assert final_state(output) == {"date": "2024-01-03"}

    def test_given_a_state_in_the_future_when_synced_then_it_is_set_back_to_today(self) -> None:
        settings = {**self.SETTINGS, "dashboard_lookback_days": 0}
        with HttpMocker() as http:
            self.ask(http, DAYS[2], composed(["free"], [3]))
            output = read_stream("report_plans", settings, {"date": "2030-01-01"})
        assert [r["date"] for r in records(output)] == ["2024-01-03"]
        assert final_state(output) == {"date": "2024-01-03"}
        assert [line for line in logged(output) if "future" in line] == [
            "The saved state of the stream report_plans lies in the future (2030-01-01). It is "
            "set back to 2024-01-03."
        ]

    def test_given_an_end_date_when_synced_then_the_day_before_is_the_last(self) -> None:
        with HttpMocker() as http:
            for day in DAYS[:2]:
                self.ask(http, day, composed(["free"], [3]))
            output = read_stream("report_plans", {**self.SETTINGS, "end_date": "2024-01-03"})
        assert sorted((r["date"], r["is_complete"]) for r in records(output)) == [
            ("2024-01-01", True),
            ("2024-01-02", True),
        ]
        assert final_state(output) == {"date": "2024-01-02"}

    def test_given_three_months_when_synced_then_a_day_costs_1(self) -> None:
        began = time.time()
        with requests_mock.Mocker() as http:
            answered = {"data": {"xValues": ["free"], "series": [[3]]}}
            http.get(f"{API}/2/composition", json=answered)
            output = read_stream("report_plans", {**self.SETTINGS, "start_date": "2023-10-01"})
            asked = [(r.qs["start"], r.qs["end"], r.qs["p"]) for r in http.request_history]
        assert sorted(asked) == [
            ([day.replace("-", "")], [day.replace("-", "")], ["gp:plan"]) for day in ALL_DAYS
        ]
        assert time.time() - began < 1
        assert [line for line in logged(output) if "costs" in line] == [
            "The report plans costs 1 for each day, of the 1,000 that Amplitude grants in five "
            "minutes."
        ]


class TestSavedCharts:
    SETTINGS = reports(board={"kind": "chart", "chart_id": "abc123"})

    CSV = '"\tDaily"\r\n\r\n"\tPlatform","\t2024-01-01"\r\n"\tiOS","12.5%"\r\n'

    @pytest.mark.parametrize("body", [answer(CSV), HttpResponse(CSV)], ids=["json", "text"])
    def test_given_a_chart_when_synced_then_its_cells_are_stored(self, body: HttpResponse) -> None:
        with HttpMocker() as http:
            get(http, "3/chart/abc123/csv", {}, body)
            output = read_stream("report_board", self.SETTINGS, sync_mode=SyncMode.full_refresh)
        assert output.errors == []
        assert records(output) == [
            {
                **{"series": "iOS", "labels": {"Platform": "iOS"}, "is_previous": False},
                **{"date": "2024-01-01T00:00:00", "value": 12.5, "is_percentage": True},
            }
        ]

    @pytest.mark.parametrize("status", [400, 404])
    def test_given_a_chart_that_is_not_there_when_synced_then_report_and_chart_are_named(
        self, status: int
    ) -> None:
        with HttpMocker() as http:
            details = {"details": "Chart abc123 not found"}
            get(http, "3/chart/abc123/csv", {}, refusal(status, metadata=details))
            output = read_stream(
                "report_board",
                self.SETTINGS,
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert first_error(output) == (
            f"Amplitude answered HTTP {status} (Chart abc123 not found). This is about the report "
            "board: mend it in Reports, or remove it there.",
            FailureType.config_error,
        )


def test_given_an_event_that_is_unknown_when_synced_then_the_report_is_named() -> None:
    with HttpMocker() as http:
        message = {"message": "Invalid chart definition", "metadata": {"details": "Invalid event"}}
        segmentation(http, {**SIGNUPS, **WHOLE}, refusal(400, **message))
        output = read_stream(
            "report_signups",
            reports(signups=BY_COUNTRY),
            expected=ExpectedOutcome.EXPECT_EXCEPTION,
        )
    assert first_error(output) == (
        "Amplitude answered HTTP 400 (Invalid chart definition: Invalid event). This is about the "
        "report signups: mend it in Reports, or remove it there.",
        FailureType.config_error,
    )


TEXTS = [
    "{{ config['secret_key'] }}",
    "{% raw %}",
    "1e3",
    "True",
    "['a']",
    "'quoted'",
    'a "type" of "op"',
    "#/definitions/base_stream",
    "*anchor: [",
    "ünï\u2028cödé 🎧 ",
    "%Y",
    "a\\nb\\",
    "",
]


@pytest.mark.parametrize(
    "text",
    [
        *("a {{ config['secret_key'] }}", "1e3", "'a' \"type\" {% if"),
        *("{Sign Up}", "{{ 1 }}", "{ ", " {a: 1}"),
    ],
)
def test_given_any_text_when_asked_for_then_it_is_taken_as_it_was_typed(text: str) -> None:
    query = {
        **{"kind": "segmentation", "events": [text], "group_by": [f"gp:{text}"]},
        "filters": [{"property": text, "values": TEXTS}],
    }
    condition = {"subprop_type": "event", "subprop_key": text, "subprop_op": "is"}
    filters = [{**condition, "subprop_value": TEXTS}]
    asked = {
        "e": json.dumps({"event_type": text, "filters": filters}),
        **{"m": "uniques", "i": "1", "g": f"gp:{text}", **LIMIT, **TODAY},
    }
    with HttpMocker() as http:
        segmentation(http, asked, series(DAYS[-1:], [1], seriesLabels=[text]))
        output = read_stream("report_x", {**reports(x=query), "start_date": "2024-01-03"})
    assert [(r["event"], r["group"]) for r in records(output)] == [(text, text)]


@pytest.mark.parametrize("text", ["a {{ config['secret_key'] }}", "1e3", "'a' \"type\" {% if"])
def test_given_any_property_when_composed_then_it_is_taken_as_it_was_typed(text: str) -> None:
    query = {"kind": "composition", "property": f"gp:{text}"}
    with HttpMocker() as http:
        get(http, "2/composition", {"p": f"gp:{text}", **TODAY}, composed([text], [1]))
        output = read_stream("report_x", {**reports(x=query), "start_date": "2024-01-03"})
    assert [(r["value"], r["users"]) for r in records(output)] == [(text, 1)]


def test_when_discovered_then_reports_follow_the_streams_of_all() -> None:
    settings = reports(
        b=BY_COUNTRY,
        a={"kind": "retention"},
        c={"kind": "chart", "chart_id": "abc123"},
        d={"kind": "funnel", "events": STEPS},
        e={"kind": "composition", "property": "platform"},
    )
    streams = [s.as_airbyte_stream() for s in SourceAmplitude(config=settings).streams(settings)]
    assert [
        (s.name, [key for key, *_ in s.source_defined_primary_key or []], s.default_cursor_field)
        for s in streams[-5:]
    ] == [
        ("report_b", ["date", "event_number", "group"], ["date"]),
        ("report_d", ["date", "step", "group"], ["date"]),
        ("report_a", ["cohort_date", "day_number"], ["cohort_date"]),
        ("report_e", ["date", "value"], ["date"]),
        ("report_c", ["series", "is_previous", "date"], None),
    ]
    for stream in streams[-5:]:
        fields = stream.json_schema["properties"].keys()
        keys = {key for key, *_ in stream.source_defined_primary_key or []}
        assert keys | {*(stream.default_cursor_field or [])} <= fields


def test_given_a_config_without_reports_then_no_more_than_an_end_is_added_to_it() -> None:
    made = SourceAmplitude(config=config()).configure({}, "")
    assert made == {**config(), "__end": "9999-11-30T00:00:00Z"}


class TestBudget:
    """A funnel that costs 200 for ten days, when Amplitude grants 980 in 315 seconds."""

    QUERY: ClassVar[dict[str, Any]] = {
        **{"kind": "funnel", "events": STEPS, "group_by": ["platform"]},
        "conversion_window_days": 14,
    }

    def read(self, days: int, *first: int) -> tuple[EntrypointOutput, float, list[str]]:
        """A sync of so many days up to today, the seconds it takes, and the days asked for."""
        asked: list[str] = []

        def answered(request: Any, _: Any) -> Any:
            [start], [end] = (request.qs[name] for name in ("start", "end"))
            asked.append(f"{start}-{end}")
            wanted = [d for d in ALL_DAYS if start <= d.replace("-", "") <= end]
            xs = {"xValues": wanted}
            times = {**xs, "series": [[0, 1500]] * len(wanted)}
            return {
                "data": [
                    {
                        **{"events": STEPS, "groupValue": "iOS"},
                        "dayFunnels": {**xs, "series": [[4, 1]] * len(wanted)},
                        **{"dayMedianTransTimes": times, "dayAvgTransTimes": times},
                    }
                ]
            }

        start = date(2024, 1, 3) - timedelta(days=days - 1)
        settings = {**reports(x=self.QUERY), "start_date": f"{start}", "num_workers": 1}
        began = time.time()
        with requests_mock.Mocker() as http:
            refused = [{"status_code": status, "json": {"error": {}}} for status in first]
            http.get(f"{API}/2/funnels", [*refused, {"json": answered}])
            output = read_stream("report_x", settings)
        return output, time.time() - began, asked

    def test_given_no_more_than_the_budget_when_synced_then_nothing_waits(self) -> None:
        output, seconds, asked = self.read(44)
        assert len(asked) == 5
        assert seconds < 1
        assert len(records(output)) == 88

    def test_given_more_than_the_budget_when_synced_then_it_waits_for_it(self) -> None:
        _, seconds, asked = self.read(54)
        assert len(asked) == 6
        assert 315 <= seconds < 316

    def test_given_a_429_when_synced_then_the_shared_budget_is_empty(self) -> None:
        _, seconds, asked = self.read(5, 429)
        assert asked == ["20231230-20240103"]
        assert 315 <= seconds < 316

    def test_when_synced_then_the_cost_is_logged_once_before_the_first_request(self) -> None:
        output, _, _ = self.read(44)
        assert [line for line in logged(output) if "costs" in line] == [
            "The report x costs 20 for each day, of the 1,000 that Amplitude grants in five "
            "minutes."
        ]


CONDITION = r'{"prop": "a", "\u006fp": "is", "values": ["b"]}'
GROUPED = r'{"event_type": "a", "group_by": [{"\u0074ype": "event", "value": "b"}]}'


@pytest.mark.parametrize(
    ("query", "last"),
    [
        # 13 for each day, and 5
        ({"events": ["a"], "segment": f"[{', '.join([CONDITION] * 12)}]"}, "2023-10-14"),
        # The brace of the event counts as one more group-by: 9, not 5.
        ({"events": [GROUPED]}, "2023-10-21"),
        ({"events": [GROUPED.replace("\\u0074", "t")]}, "2023-10-30"),
    ],
)
def test_given_json_that_escapes_its_keys_when_synced_then_no_request_costs_more_than_200(
    query: dict[str, Any], last: str
) -> None:
    settings = {**reports(x={"kind": "segmentation", **query}), "start_date": "2023-10-01"}
    assert windows_of("report_x", settings, {})[0] == ("2023-10-01", last)


DEAR = {"kind": "funnel", "events": [f"Step {n}" for n in range(11)], "group_by": ["country"]}
DEAR_COMPLAINT = (
    "Reports (reports) is not valid: x would cost 220, where one request may cost 200. That is 2 "
    "days, the fewest that can be asked for, at 110 each: conditions (one, four for each group-by, "
    "and those of Users) times what its events count. Leave out some of these."
)


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            (
                {**BY_COUNTRY, "events": ['{"event_type": "a"']},
                "x: '{\"event_type\": \"a\"' is no JSON (Expecting ',' delimiter: line 1 column 19 "
                "(char 18))",
            ),
            (
                {**BY_COUNTRY, "events": [' {"event": "a"}']},
                'x: \' {"event": "a"}\' is no JSON object with an event_type',
            ),
            (
                {**BY_COUNTRY, "events": ['{"event_type": "a", "group_by": [{"value": "b"}]}']},
                "x: group_by of the event a must be a list such as "
                '[{"type": "event", "value": "price"}]',
            ),
            (
                {**BY_COUNTRY, "metric": "value_avg"},
                "x: Count (metric) value_avg takes events in JSON whose group_by is the property "
                'to be counted, such as {"event_type": "Signed Up", "group_by": [{"type": "event", '
                '"value": "price"}]}',
            ),
            (
                {**BY_COUNTRY, "segment": '[{"prop": "country"}]'},
                "x: Users (segment) must be a list of conditions such as "
                '[{"prop": "country", "op": "is", "values": ["Germany"]}]',
            ),
            (
                {"kind": "retention", "mode": "bracket"},
                "x: Brackets (brackets) and the mode bracket are needed together or not at all",
            ),
            (
                {"kind": "retention", "brackets": "[[0, 1]]"},
                "x: Brackets (brackets) and the mode bracket are needed together or not at all",
            ),
            *(
                (
                    {"kind": "retention", "mode": "bracket", "brackets": brackets},
                    "x: Brackets (brackets) must be a list of a first and a last day each, up to "
                    "day 365, such as [[0, 1], [1, 7]]",
                )
                for brackets in ("[]", "[0, 1]", "[[1, 0]]", "[[0, 366]]", '[["0", 1]]', "{}")
            ),
            (
                {"kind": "retention", "start_event": OF_GENRE},
                "x: the events of retention can't have a group_by",
            ),
        ],
    )
    def test_given_a_query_that_cannot_be_asked_then_report_and_field_are_named(
        self, query: dict[str, Any], expected: str
    ) -> None:
        settings = reports(fine=BY_COUNTRY, x=query)
        found = complaint(settings, refuse_unusable)
        assert found == f"Reports (reports) is not valid: {expected}."

    @pytest.mark.parametrize("door", [package, two_files])
    def test_given_a_report_that_is_too_dear_then_every_door_names_it_and_its_cost(
        self, door: Callable[[dict[str, Any]], None]
    ) -> None:
        assert complaint(reports(fine=BY_COUNTRY, x=DEAR), door) == DEAR_COMPLAINT

    @pytest.mark.parametrize("door", [package, two_files])
    def test_given_a_name_twice_then_it_is_refused(
        self, door: Callable[[dict[str, Any]], None]
    ) -> None:
        settings = config(reports=[*reports(x=BY_COUNTRY)["reports"]] * 2)
        expected = "Reports (reports) is not valid: 2 reports have the name x."
        if door is two_files:  # the CDK is faster
            expected = (
                "Dynamic streams list contains a duplicate name: report_x. Please check your "
                "configuration."
            )
        assert complaint(settings, door) == expected

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            (5, "entry 1: 5 is not of type 'object'"),
            ({"query": BY_COUNTRY}, "entry 1: Name (name) is missing"),
            ({"name": "x"}, "x: Question (query) is missing"),
            (
                {"name": "1x", "query": BY_COUNTRY},
                "1x: Name (name): '1x' is not of the form signups_by_country",
            ),
            (
                {"name": "x", "query": {"kind": "funnels"}},
                "x: Question (query): kind is 'funnels', not one of segmentation, funnel, "
                "retention, composition, chart",
            ),
            (
                {"name": "x", "query": {"kind": "funnel", "events": ["a"]}},
                "x: Question (query): Steps (events): ['a'] is too short",
            ),
            (
                {"name": "x", "query": {**BY_COUNTRY, "events": ["a", "b", "c"]}},
                "x: Question (query): Events (events): ['a', 'b', 'c'] is too long",
            ),
            (
                {"name": "x", "query": {**BY_COUNTRY, "interval": "hour"}},
                "x: Question (query): Per (interval): 'hour' is not one of ['day', 'week', "
                "'month']",
            ),
            (
                {"name": "x", "query": {**BY_COUNTRY, "group_by": ["plan"]}},
                "x: Question (query): Group by (group_by): entry 1: 'plan' is not of the form "
                "country, platform, gp:plan",
            ),
            (
                {"name": "x", "query": {**BY_COUNTRY, "filters": [{"property": "a"}]}},
                "x: Question (query): Only Where (filters): entry 1: Values (values) is missing",
            ),
            (
                {"name": "x", "query": {"kind": "chart", "chart_id": "a/chart/b"}},
                "x: Question (query): Chart ID (chart_id): 'a/chart/b' is not of the form abc123",
            ),
            *(
                (
                    {"name": "x", "query": {"kind": "composition", "property": text}},
                    f"x: Question (query): Property (property): {text!r} is not of the form "
                    "country, platform, gp:plan",
                )
                for text in ("plan", "gp:", "Country", "device_type", "a,country")
            ),
            (
                {"name": "x", "query": {"kind": "composition"}},
                "x: Question (query): Property (property) is missing",
            ),
            (
                {"name": "x", "query": {"kind": "composition", "property": "os", "segment": "[]"}},
                "x: Question (query): there is no field segment, but kind, property",
            ),
            (
                {"name": "x", "query": {"kind": "retention", "events": ["a"]}},
                "x: Question (query): there is no field events, but kind, start_event, "
                "return_event, mode, brackets",
            ),
        ],
    )
    def test_given_a_report_of_another_form_then_the_report_and_the_field_are_named(
        self, entry: Any, expected: str
    ) -> None:
        def form(settings: dict[str, Any]) -> None:
            refuse_invalid(settings, spec())

        found = complaint(config(reports=[entry]), form)
        assert found == f"Reports (reports) is not valid: {expected}."

    @pytest.mark.parametrize(
        "malformed", [5, "x", [5], [{}], [{"name": "x", "query": 5}], [{"name": "x", "query": {}}]]
    )
    def test_given_what_is_no_list_of_reports_then_other_doors_refuse_it_as_well(
        self, malformed: Any
    ) -> None:
        found = complaint(config(reports=malformed), two_files)
        assert found.startswith(
            "Reports (reports) is not valid: a report has another form than it should ("
        )

    @pytest.mark.parametrize("door", [package, two_files])
    @pytest.mark.parametrize(
        ("field", "value", "found"),
        [
            ("kind", [], "kind is an empty list, not one of segmentation, funnel, retention,"),
            ("kind", {"a": 1}, "kind is an object, not one of segmentation, funnel, retention,"),
            ("kind", "funnels", "kind is 'funnels', not one of segmentation, funnel, retention,"),
            ("kind", None, "kind is null, not one of segmentation, funnel, retention,"),
            ("events", [], "events is missing"),
            ("events", {"a": 1}, "events is an object where a list of texts should be"),
            ("events", [{}], "events is a list where a list of texts should be"),
            ("segment", {"op": "is"}, "segment is an object where a text should be"),
            ("segment", True, "segment is a boolean where a text should be"),
            ("interval", [], "interval is an empty list where a text should be"),
            ("interval", "hour", "interval is 'hour', not one of day, week, month"),
            ("metric", 5, "metric is a number where a text should be"),
            ("group_by", 5, "group_by is a number where a list of texts should be"),
            ("filters", ["x"], "filters is a list where a list of filters with a property and"),
            ("filters", [{"property": "a", "values": [1]}], "filters is a list where a list of"),
        ],
    )
    def test_given_a_value_of_another_type_then_every_door_names_the_report(
        self, field: str, value: Any, found: str, door: Callable[[dict[str, Any]], None]
    ) -> None:
        message = complaint(reports(x={**BY_COUNTRY, field: value}), door)
        assert message.startswith("Reports (reports) is not valid: x: ")
        if door is two_files:  # the form of ours names the field by its title
            assert message.startswith(f"Reports (reports) is not valid: x: {found}")

    @pytest.mark.parametrize("days", ["ten", [5], 1.5, True])
    def test_given_a_conversion_window_of_another_type_then_other_doors_name_the_report(
        self, days: Any
    ) -> None:
        query = {"kind": "funnel", "events": ["a", "b"], "conversion_window_days": days}
        assert complaint(reports(x=query), two_files).startswith(
            "Reports (reports) is not valid: x: conversion_window_days is "
        )

    def test_given_a_report_that_is_too_dear_when_checked_then_it_is_named(self) -> None:
        settings = reports(x=DEAR)
        source = ConcurrentDeclarativeSource(config=settings, source_config=deepcopy(MANIFEST))
        status = source.check(logging.getLogger("airbyte"), settings)
        assert status.status is Status.FAILED
        assert DEAR_COMPLAINT in str(status.message)

    def test_given_blank_fields_when_made_then_they_count_as_absent(self) -> None:
        blank = {"segment": "", "metric": None, "group_by": None, "interval": ""}
        settings = reports(x={**BY_COUNTRY, **blank})
        source = SourceAmplitude(config=settings)
        [report] = source.configure({}, "")["reports"]
        assert report["query"] == {"kind": "segmentation", "events": ["Signed Up"]}


@cache
def spec() -> Mapping[str, Any]:
    manifest = SourceAmplitude(config=config()).resolved_manifest
    return manifest["spec"]["connection_specification"]  # type: ignore[no-any-return]


def windows_of(name: str, settings: dict[str, Any], state: dict[str, Any]) -> list[tuple[str, str]]:
    """First and last day of what a sync asks for, from a state on."""
    catalog = CatalogBuilder().with_stream(name, SyncMode.incremental).build()
    states = StateBuilder().with_stream_state(name, state).build()
    source = SourceAmplitude(catalog=catalog, config=settings, state=states)
    [stream] = [s for s in source.streams(settings) if s.name == name]
    slices = [partition.to_slice() for partition in stream.generate_partitions()]
    return sorted((s["start_time"], s["end_time"]) for s in slices if s)
