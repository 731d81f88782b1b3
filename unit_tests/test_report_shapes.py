"""Funnels and saved charts with real bodies: what becomes of them, and what is refused."""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from airbyte_cdk.models import FailureType
from airbyte_cdk.sources.streams.http.error_handlers import ResponseAction
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from scripts.inline_schemas import read_schemas
from source_amplitude import components
from source_amplitude.components import AmplitudeErrorHandler, ChartExtractor, FunnelExtractor
from unit_tests.test_components import response

DAYS = ["2017-08-14", "2017-08-15"]
STEPS = ["Search", "Select", "Play"]
FUNNEL = "/api/2/funnels for 20170814 to 20170815"
CHART_URL = "https://amplitude.com/api/3/chart/x8k2m1qp/csv"
CHART = "/api/3/chart/x8k2m1qp/csv"
EVENTS = [{"event_type": name} for name in STEPS]


def reason(asked: str, extract: Callable[[], object]) -> str:
    """Why an answer is refused; what the message says around it is looked at here."""
    with pytest.raises(AirbyteTracedException) as failure:
        extract()
    assert failure.value.failure_type == FailureType.system_error
    found = re.fullmatch(
        rf"Amplitude's answer to {re.escape(asked)} can't be read without guessing: (.+)\. Nothing "
        r"of it was stored\. Try again later; if it stays like this, report it to the connector's "
        r"maintainers\. Shape of the answer, without its values: .+",
        failure.value.message or "",
    )
    assert found, failure.value.message
    return found[1]


def funnel(**changes: Any) -> dict[str, Any]:
    """An element of `data` of the recorded shape."""
    xs = {"xValues": DAYS, "formattedXValues": ["Aug 14", "Aug 15"]}
    return {
        "events": STEPS,
        "cumulativeRaw": [132, 66, 32],
        "cumulative": [1.0, 0.5, 0.2424],
        "stepByStep": [1.0, 0.5, 0.4848],
        "medianTransTimes": [0, 166444, 270194],
        "avgTransTimes": [0, 2175406, 5607243],
        "dayFunnels": {"series": [[128, 64, 32], [4, 2, 0]], **xs},
        "dayMedianTransTimes": {"series": [[0, 165548, 264380], [0, 164767, 0]], **xs},
        "dayAvgTransTimes": {"series": [[0, 2294365, 5730478], [0, 2268879.5, 0]], **xs},
        "groupValue": "",
        "meta": {"segmentIndex": 0},
        "propsum": [],
        **changes,
    }


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in funnel().items() if name not in names}


def part(name: str, **changes: Any) -> dict[str, Any]:
    """An element of `data` with one of its objects changed."""
    return funnel(**{name: {**funnel()[name], **changes}})


def extract_funnel(data: Any, events: Any = EVENTS, **params: str) -> list[Any]:
    steps = [("e", json.dumps(event)) for event in events]
    query = urlencode([*steps, ("start", "20170814"), ("end", "20170815"), *params.items()])
    count = len(data) if isinstance(data, list) else 0
    answer = response(
        json.dumps({"data": data, "numSeries": count, "wasCached": False}).encode(),
        url=f"https://amplitude.com/api/2/funnels?{query}",
    )
    return list(FunnelExtractor().extract_records(answer))


class TestFunnel:
    """All answers are to three steps on two days."""

    def test_given_a_funnel_when_extracted_then_each_step_of_each_day_is_a_record(self) -> None:
        day: dict[str, Any] = {"date": "2017-08-14", "group": "(all)"}
        next_day: dict[str, Any] = {"date": "2017-08-15", "group": "(all)"}
        untimed = {"median_seconds": None, "average_seconds": None}
        assert extract_funnel([funnel()]) == [
            {**day, "step": 1, "event": "Search", "users": 128, "conversion": 1.0, **untimed},
            {
                **{**day, "step": 2, "event": "Select", "users": 64, "conversion": 0.5},
                **{"median_seconds": 165.548, "average_seconds": 2294.365},
            },
            {
                **{**day, "step": 3, "event": "Play", "users": 32, "conversion": 0.25},
                **{"median_seconds": 264.38, "average_seconds": 5730.478},
            },
            {**next_day, "step": 1, "event": "Search", "users": 4, "conversion": 1.0, **untimed},
            {
                **{**next_day, "step": 2, "event": "Select", "users": 2, "conversion": 0.5},
                **{"median_seconds": 164.767, "average_seconds": 2268.8795},
            },
            {**next_day, "step": 3, "event": "Play", "users": 0, "conversion": 0.0, **untimed},
        ]

    def test_given_a_day_without_users_when_extracted_then_there_is_no_conversion(self) -> None:
        records = extract_funnel([part("dayFunnels", series=[[0, 0, 0], [1, 1, 1]])])
        assert [r["conversion"] for r in records] == [None, None, None, 1.0, 1.0, 1.0]

    def test_given_days_in_other_forms_and_orders_when_extracted_then_each_has_its_numbers(
        self,
    ) -> None:
        days = {
            "xValues": ["Aug 15, 2017", "2017-08-14T00:00:00"],
            "series": [[4, 2, 0], [128, 64, 32]],
        }
        records = extract_funnel([funnel(dayFunnels=days)])
        assert sorted(records, key=lambda r: (r["date"], r["step"])) == extract_funnel([funnel()])

    @pytest.mark.parametrize("name", ["median", "average"])
    @pytest.mark.parametrize("is_null", [True, False])
    def test_given_no_times_by_day_when_extracted_then_they_are_null(
        self, name: str, is_null: bool
    ) -> None:
        times = {"median": "dayMedianTransTimes", "average": "dayAvgTransTimes"}[name]
        records = extract_funnel([funnel(**{times: None}) if is_null else without(times)])
        assert records == [
            {**record, f"{name}_seconds": None} for record in extract_funnel([funnel()])
        ]

    def test_given_no_names_of_events_when_extracted_then_those_of_the_query_are_taken(
        self,
    ) -> None:
        assert extract_funnel([without("events")]) == extract_funnel([funnel()])

    def test_given_the_same_event_twice_when_extracted_then_the_steps_stay_apart(self) -> None:
        records = extract_funnel([funnel(events=["Search", "Search", "Search"])])
        assert [(r["step"], r["event"]) for r in records[:3]] == [(n, "Search") for n in (1, 2, 3)]

    @pytest.mark.parametrize(
        ("params", "events"),
        [
            ({"g": "platform"}, EVENTS),
            ({}, [*EVENTS[:2], {**EVENTS[2], "group_by": [{"type": "event", "value": "kind"}]}]),
        ],
        ids=["the-query-groups", "an-event-groups"],
    )
    def test_given_groups_when_extracted_then_each_has_its_own_records(
        self, params: dict[str, str], events: list[dict[str, Any]]
    ) -> None:
        data = [funnel(groupValue=group) for group in ("iOS", "(none)")]
        records = extract_funnel(data, events, **params)
        assert [record["group"] for record in records[::6]] == ["iOS", "(none)"]
        assert len(records) == 12

    def test_given_a_name_of_one_that_was_not_grouped_when_extracted_then_it_is_all(self) -> None:
        events = [{**event, "group_by": []} for event in EVENTS]
        records = extract_funnel([funnel(groupValue="All Users")], events)
        assert {record["group"] for record in records} == {"(all)"}

    @pytest.mark.parametrize("params", [{}, {"g": "platform"}])
    def test_given_nobody_who_took_the_first_step_when_extracted_then_there_are_no_records(
        self, params: dict[str, str]
    ) -> None:
        assert extract_funnel([], **params) == []

    @pytest.mark.parametrize(
        ("count", "params", "warns"),
        [
            (2, {"limit": "2"}, True),
            (2, {"limit": "3"}, False),
            (100, {}, True),
            (99, {}, False),
        ],
    )
    def test_given_as_many_groups_as_the_limit_when_extracted_then_the_log_says_so(
        self, count: int, params: dict[str, str], warns: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = [funnel(groupValue=f"group {n}") for n in range(count)]
        assert len(extract_funnel(data, g="platform", **params)) == 6 * count
        message = (
            f"The funnel Search > Select > Play for 20170814 to 20170815 came with {count} "
            "groups, as many as its limit lets through: others may be missing. Set a higher "
            "limit, or group by a property with fewer values."
        )
        assert caplog.messages == [message] * warns

    def test_given_no_groups_when_extracted_then_a_limit_means_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        extract_funnel([funnel()], limit="1")
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (None, "data is null where a list should be"),
            ({}, "data is an empty object where a list should be"),
            ([funnel(), funnel()], "2 funnels where one was asked for"),
            ([[]], "element 1 of data is an empty list where a record should be"),
            ([{}], "element 1 of data is an empty object where a record should be"),
            ([funnel(dayFunnels=None)], "dayFunnels.xValues is missing where a list should be"),
            ([funnel(events="Search")], "events is a text where a list should be"),
            ([funnel(events=STEPS[:2])], "2 events where 3 were asked for"),
            ([funnel(events=[*STEPS[:2], 3])], "event 3 is a number where a text should be"),
            ([part("dayFunnels", xValues=DAYS[:1])], "1 of 2 dates are missing: 2017-08-15"),
            (
                [part("dayFunnels", xValues=["2017-08-14", "2017-08-16"])],
                'date 2 is "2017-08-16", which was not asked for',
            ),
            ([part("dayFunnels", xValues=[DAYS[0], "Aug 14"])], "a date stands twice"),
            (
                [part("dayFunnels", series=[[1, 1, 1], [1, 0.5, 0]])],
                "number 2 of row 2 of dayFunnels is not 0, 1, 2 or so on, as a count should be",
            ),
            ([part("dayFunnels", series=[[1, 1, 1]])], "dayFunnels has 1 rows for 2 days"),
            (
                [part("dayFunnels", series=[[1, 1, 1], [1, 1]])],
                "row 2 of dayFunnels has 2 numbers for 3 events",
            ),
            (
                [part("dayFunnels", series=[[1, 1, 1], [1, True, 1]])],
                "number 2 of row 2 of dayFunnels is a boolean",
            ),
            (
                [part("dayFunnels", series=[[1, 1, 1], {"0": 1}])],
                "row 2 of dayFunnels is an object where a list should be",
            ),
            (
                [part("dayMedianTransTimes", xValues=[DAYS[0], "2017-08-16"])],
                'date 2 is "2017-08-16", which was not asked for',
            ),
            (
                [part("dayMedianTransTimes", series=[[0, 1, 1]])],
                "dayMedianTransTimes has 1 rows for 2 days",
            ),
            (
                [part("dayAvgTransTimes", series=[[0, 1, 1], [0, 1]])],
                "row 2 of dayAvgTransTimes has 2 numbers for 3 events",
            ),
            (
                [part("dayAvgTransTimes", series=[[0, 1, "1"], [0, 1, 1]])],
                "number 3 of row 1 of dayAvgTransTimes is a text",
            ),
        ],
    )  # fmt: skip
    def test_given_arrays_that_do_not_pair_when_extracted_then_it_fails_and_says_which(
        self, data: Any, found: str
    ) -> None:
        assert reason(FUNNEL, lambda: extract_funnel(data)) == found

    @pytest.mark.parametrize(
        ("groups", "found"),
        [
            (["iOS", ""], "the groupValue of funnel 2 is an empty text"),
            ([None], "the groupValue of funnel 1 is null"),
            ([["iOS"]], "the groupValue of funnel 1 is a list"),
            ([7], "the groupValue of funnel 1 is a number"),
            (["iOS", "iOS"], "2 funnels, two of which have the same group"),
        ],
    )
    def test_given_groups_without_names_of_their_own_when_extracted_then_it_fails(
        self, groups: list[Any], found: str
    ) -> None:
        data = [funnel(groupValue=group) for group in groups]
        assert reason(FUNNEL, lambda: extract_funnel(data, g="platform")) == found

    def test_given_a_group_without_any_name_when_extracted_then_it_fails(self) -> None:
        data = [without("groupValue")]
        found = "the groupValue of funnel 1 is missing"
        assert reason(FUNNEL, lambda: extract_funnel(data, g="platform")) == found

    def test_given_a_second_group_of_another_form_when_extracted_then_nothing_is(self) -> None:
        data = [funnel(groupValue="iOS"), funnel(groupValue="Web", events=STEPS[:2])]
        found = "2 events where 3 were asked for"
        assert reason(FUNNEL, lambda: extract_funnel(data, g="platform")) == found


def envelope(text: str) -> bytes:
    return json.dumps({"data": text}).encode()


def raw(text: str) -> bytes:
    return text.encode()


def extract_chart(body: bytes, url: str = CHART_URL) -> list[Any]:
    return list(ChartExtractor().extract_records(response(body, url=url)))


HEADINGS = '"\tPlatform","2025-01-06T00:00:00","2025-01-13T00:00:00"\r\n'


def chart(*rows: str, headings: str = HEADINGS) -> bytes:
    return envelope(headings + "".join(f"{row}\r\n" for row in rows))


class TestChart:
    @pytest.mark.parametrize("body", [envelope, raw])
    def test_given_a_csv_in_an_envelope_or_not_when_extracted_then_each_cell_is_a_record(
        self, body: Callable[[str], bytes]
    ) -> None:
        text = (
            '"\tSessions, by week"\r\n"Uniques"\r\n\r\n'
            '"\tPlatform","2025-01-06T00:00:00","2025-01-13T00:00:00"\r\n'
            '"\tApp",1042,1100.5\r\n'
            '"\tApp [Previous]","12.3%",\r\n'
        )
        labels = {"series": "App", "labels": {"Platform": "App"}}
        first, second = ({"date": f"2025-01-{day}T00:00:00"} for day in ("06", "13"))
        current = {**labels, "is_previous": False, "is_percentage": False}
        previous = {**labels, "is_previous": True}
        assert extract_chart(body(text)) == [
            {**current, **first, "value": 1042},
            {**current, **second, "value": 1100.5},
            {**previous, **first, "value": 12.3, "is_percentage": True},
            {**previous, **second, "value": None, "is_percentage": False},
        ]

    def test_given_records_when_extracted_then_they_are_of_the_schema(self) -> None:
        schema: Any = read_schemas()["report_chart"]
        for record in extract_chart(chart('"\tApp",1,"2.5%"', '"\tWeb",,3')):
            assert record.keys() == schema["properties"].keys() - {"project_name"}
            Draft7Validator(schema).validate(record)

    @pytest.mark.parametrize(
        ("heading", "day"),
        [
            ("\t2026-06-01", "2026-06-01T00:00:00"),
            ("2026-06-01", "2026-06-01T00:00:00"),
            ("\t2026-06-01T00:00:00", "2026-06-01T00:00:00"),
            ("2025-09-30T01:00:00", "2025-09-30T01:00:00"),
        ],
    )
    def test_given_a_heading_of_a_day_or_an_hour_when_extracted_then_the_date_has_its_time(
        self, heading: str, day: str
    ) -> None:
        [record] = extract_chart(chart('"\tApp",7', headings=f'"\tPlatform","{heading}"\r\n'))
        assert (record["series"], record["date"], record["value"]) == ("App", day, 7)

    def test_given_a_funnel_by_week_when_extracted_then_each_step_is_a_series(self) -> None:
        body = envelope(
            '"\tCheckout, by week"\r\n\r\n"\tConversion","\tFeb 10, 2025 - Feb 23, 2025"\r\n\r\n'
            '"\tSegment","\tSteps","\t2025-02-10","\t2025-02-17"\r\n'
            '"\tWeb","\tEntire Funnel","0.2279","0.25"\r\n'
            '"\t","\tCart Viewed","1",\t\r\n'
            '"\t[Previous] Web","\tEntire Funnel","0.2","0.3"\r\n'
            ',"\tCart Viewed","1","1"\r\n'
        )
        records = extract_chart(body)
        assert {record["date"] for record in records} == {
            "2025-02-10T00:00:00",
            "2025-02-17T00:00:00",
        }
        assert [
            (*r["labels"].values(), r["is_previous"], r["value"], r["is_percentage"])
            for r in records
        ] == [
            ("Web", "Entire Funnel", False, 0.2279, False),
            ("Web", "Entire Funnel", False, 0.25, False),
            ("Web", "Cart Viewed", False, 1, False),
            ("Web", "Cart Viewed", False, None, False),
            ("Web", "Entire Funnel", True, 0.2, False),
            ("Web", "Entire Funnel", True, 0.3, False),
            ("Web", "Cart Viewed", True, 1, False),
            ("Web", "Cart Viewed", True, 1, False),
        ]

    @pytest.mark.parametrize(
        ("rows", "series"),
        [
            (
                ["US,iOS", ",web", "FR,iOS", ",web"],
                ["US | iOS", "US | web", "FR | iOS", "FR | web"],
            ),
            (["US,iOS", "FR,", ",iOS"], ["US | iOS", "FR | ", "FR | iOS"]),
            ([",iOS", "US,iOS", ",web"], [" | iOS", "US | iOS", "US | web"]),
            (
                ["US,iOS,free", ",,paid", ",web,", ",,paid", "FR,,paid", ",iOS,paid"],
                [
                    *("US | iOS | free", "US | iOS | paid", "US | web | ", "US | web | paid"),
                    *("FR |  | paid", "FR | iOS | paid"),
                ],
            ),
        ],
    )
    def test_given_a_blank_label_when_extracted_then_it_is_the_one_above_if_those_to_its_left_are(
        self, rows: list[str], series: list[str]
    ) -> None:
        labels = ",".join(("country", "platform", "plan")[: rows[0].count(",") + 1])
        body = chart(*(f"{row},1" for row in rows), headings=f"{labels},2025-01-06T00:00:00\r\n")
        assert [record["series"] for record in extract_chart(body)] == series

    @pytest.mark.parametrize(
        ("rows", "series"),
        [
            (["a | b,c", "a,b | c"], ["a || b | c", "a | b || c"]),
            (["a || b,c", "a,b || c", "a,b | c"], ["a ||| b | c", "a | b ||| c", "a | b || c"]),
            (["|,b", "a,|", "|,|"], ["|| | b", "a | ||", "|| | ||"]),
            (["a|b,c||", "a | | b,c"], ["a|b | c||", "a || || b | c"]),
        ],
    )
    def test_given_bars_in_labels_when_extracted_then_no_two_rows_have_the_same_series(
        self, rows: list[str], series: list[str]
    ) -> None:
        body = chart(*(f"{row},1" for row in rows), headings="x,y,2025-01-06T00:00:00\r\n")
        found = extract_chart(body)
        assert [record["series"] for record in found] == series
        assert [",".join(record["labels"].values()) for record in found] == rows

    def test_given_bars_in_the_only_label_when_extracted_then_it_is_the_series(self) -> None:
        body = chart("a | b,1", headings="x,2025-01-06T00:00:00\r\n")
        assert [record["series"] for record in extract_chart(body)] == ["a | b"]

    def test_given_several_columns_of_labels_when_extracted_then_all_name_the_series(self) -> None:
        body = chart(
            '"\tPaid","\tiOS",,1',
            '"\tPaid","\tWeb",,2',
            '"\t[Previous] Paid","\tiOS",,3',
            headings='"\tSegment","\tplatform","","2025-01-06T00:00:00"\r\n',
        )
        assert extract_chart(body)[1:] == [
            {
                "series": series,
                "labels": labels,
                "is_previous": is_previous,
                "date": "2025-01-06T00:00:00",
                "value": value,
                "is_percentage": False,
            }
            for series, labels, is_previous, value in (
                ("Paid | Web | ", {"Segment": "Paid", "platform": "Web", "#3": ""}, False, 2),
                ("Paid | iOS | ", {"Segment": "Paid", "platform": "iOS", "#3": ""}, True, 3),
            )
        ]

    @pytest.mark.parametrize(
        "title",
        [
            *("[Amplitude] Sessions", '"{a}", said "b"', "7", "a;b", "2025-01-06 to 2025-01-19"),
            '"\tJan 6, 2025","\tJan 19, 2025"',
        ],
    )
    def test_given_any_title_when_extracted_then_it_is_passed_over(self, title: str) -> None:
        texts = (
            f"{title}\r\n{HEADINGS}App,1,2\r\n",
            f"\r\n{title},,\r\n{HEADINGS}App,1,2",
            f"{title}\r\n\r\n{title}\r\n\r\n\r\n{HEADINGS}App,1,2",
        )
        for text in texts:
            assert [record["value"] for record in extract_chart(raw(text))] == [1, 2]

    def test_given_a_title_of_dates_alone_when_extracted_then_it_is_passed_over(self) -> None:
        body = raw(f'"\t2025-01-06","\t2025-01-19"\r\n\r\n{HEADINGS}App,1,2')
        assert [record["value"] for record in extract_chart(body)] == [1, 2]

    @pytest.mark.parametrize("body", [envelope, raw])
    def test_given_a_byte_order_mark_when_extracted_then_it_is_no_part_of_a_heading(
        self, body: Callable[[str], bytes]
    ) -> None:
        records = extract_chart(body(f'\ufeff{HEADINGS}"\tApp",1,2\r\n'))
        assert records[0]["labels"] == {"Platform": "App"}

    def test_given_headings_that_stand_twice_when_extracted_then_the_second_has_its_position(
        self,
    ) -> None:
        body = chart("a,b,1", headings="country,country,2025-01-06T00:00:00\r\n")
        assert extract_chart(body)[0]["labels"] == {"country": "a", "country#2": "b"}

    def test_given_a_metric_without_a_name_when_extracted_then_its_series_has_none_either(
        self,
    ) -> None:
        body = chart('"\t","7"', headings='"\t","2025-01-06T13:00:00"\r\n')
        assert extract_chart(body) == [
            {
                "series": "",
                "labels": {"#1": ""},
                "is_previous": False,
                "date": "2025-01-06T13:00:00",
                "value": 7,
                "is_percentage": False,
            }
        ]

    @pytest.mark.parametrize(
        ("label", "series", "is_previous"),
        [
            ("[Previous] App", "App", True),
            ("App [Previous]", "App", True),
            ("[Previous]", "", True),
            ("App[Previous]Web", "App Web", True),
            ("Previous", "Previous", False),
            ("[previous] App", "[previous] App", False),
            ("[Amplitude] App", "[Amplitude] App", False),
        ],
    )
    def test_given_a_marked_row_when_extracted_then_it_is_named_as_its_counterpart_is(
        self, label: str, series: str, is_previous: bool
    ) -> None:
        [record, _] = extract_chart(chart(f'"\t{label}",1,2'))
        assert (record["series"], record["is_previous"]) == (series, is_previous)

    def test_given_a_marked_row_when_extracted_then_labels_with_blanks_still_pair(self) -> None:
        records = extract_chart(chart('"A  b",1,2', '"A  b [Previous]",3,4'))
        assert {record["series"] for record in records} == {"A  b"}

    @pytest.mark.parametrize(
        ("cell", "expected"),
        [
            ("0", 0),
            ("-4", -4),
            ("+4", 4),
            ("0012", 12),
            (" 7 ", 7),
            ("\t7", 7),
            ("1.50", 1.5),
            ("-0.25%", -0.25),
            ("100%", 100),
            ("1e3", 1000.0),
            ("1.5E-3", 0.0015),
            ("1,234.5", 1234.5),
            ("1,234,567", 1234567),
            ("-12,345,678.9%", -12345678.9),
            ("9007199254740993", 9007199254740993),
            ("123456789012345678901", 123456789012345680000.0),
            ("", None),
            (" ", None),
            ("\t", None),
        ],
    )
    def test_given_a_cell_when_extracted_then_it_is_the_number_it_certainly_is(
        self, cell: str, expected: float | None
    ) -> None:
        [record, _] = extract_chart(chart(f'"\tApp","{cell}",1'))
        assert record["value"] == expected
        assert type(record["value"]) is type(expected)
        assert record["is_percentage"] is cell.endswith("%")

    @pytest.mark.parametrize(
        "cell",
        ["n/a", "1,234", "12,34", "1.234,5", "$5", "5 %", "%", "NaN", "1e999", "0x1F", "1_000",
         "\uff11", "2025-01-06T00:00:00", "1:30", "1,234,5", "."],
    )  # fmt: skip
    def test_given_a_cell_that_is_not_certainly_a_number_when_extracted_then_nothing_is(
        self, cell: str
    ) -> None:
        answer = response(chart('"\tApp",1,2', f'"\tWeb",1,"{cell}"'), url=CHART_URL)
        records = iter(ChartExtractor().extract_records(answer))
        found = f'2025-01-13T00:00:00 of row 2, Web, is "{cell}", no number'
        assert reason(CHART, lambda: next(records)) == found

    def test_given_a_chart_that_is_refused_when_extracted_then_its_shape_tells_no_value(
        self,
    ) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            extract_chart(chart('"\tAcme Inc.","1041","42%"', '"\tBraun","n/a"'))
        assert str(failure.value.message).partition("without its values: ")[2] == (
            "[1 * [1 * text, 2 * date 0000-00-00T00:00:00], 1 * [1 * text, 2 * number], "
            "1 * [2 * text]]"
        )

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            (chart('"\tApp",1'), "row 1 has 2 cells under 3 headings"),
            (chart('"\tApp",1,2', '"\tWeb",1,2,3'), "row 2 has 4 cells under 3 headings"),
            (chart('"\tApp",1,2', '""'), "row 2 has 1 cells under 3 headings"),
            (chart('"\tApp",1,2', '"\tApp",1,2'), "row 2 has the labels of another, App"),
            (chart('"\tApp",1,2', "App,1,2"), "row 2 has the labels of another, App"),
            (
                chart('"\t[Previous] App",1,2', '"\tApp [Previous]",1,2'),
                "row 2 has the labels of another, App",
            ),
            (
                chart(headings='"\tPlatform","2025-01-06T00:00:00","Total"\r\n'),
                "its columns of dates do not stand together at the end",
            ),
            (
                chart(headings="2025-01-06T00:00:00,Platform,2025-01-07T00:00:00\r\n"),
                "its columns of dates do not stand together at the end",
            ),
            (
                chart(headings="Platform,2025-01-06T00:00:00,2025-01-06T00:00:00\r\n"),
                "two of its columns have the same date",
            ),
            (
                chart(headings="Platform,2025-01-06,2025-01-06T00:00:00\r\n"),
                "two of its columns have the same date",
            ),
            (
                chart(headings="Platform,2025-02-30\r\n"),
                "the heading 2025-02-30T00:00:00 is no date",
            ),
            (
                chart(headings="a#3,a,a,2025-02-20T00:00:00\r\n"),
                "two of its columns have the same heading: ['a#3', 'a', 'a#3']",
            ),
            (
                chart('"\tApp"x,1,2'),
                "line 2 is no CSV (',' expected after '\"')",
            ),
            (chart('"\tApp,1,2'), "line 2 is no CSV (unexpected end of data)"),
            (envelope(""), "it holds no row"),
            (envelope("\r\n\r\n"), "it holds no row"),
            (raw(""), "it holds no row"),
            (b'{"data": null}', "data is null where a text should be"),
            (b'{"data": [["App"]]}', "data is a list where a text should be"),
            (b'{"csv": "x"}', "data is missing where a text should be"),
            (b"[]", "data is missing where a text should be"),
            (b'{"data": "x"', "it is neither JSON nor CSV"),
            (b"\n<html>", "it is neither JSON nor CSV"),
            (b"Platform\xff", "it is no UTF-8 (invalid start byte)"),
        ],
    )
    def test_given_what_is_no_certain_table_when_extracted_then_it_fails_and_says_why(
        self, body: bytes, found: str
    ) -> None:
        assert reason(CHART, lambda: extract_chart(body)) == found

    @pytest.mark.parametrize(
        "text",
        [
            '"\tFunnel"\r\n"\tStep","Users"\r\n"\tSearch",128\r\n',
            "Week of 2025-01-06T00:00:00\r\n",
            "2025-01-06,2025-01-13\r\n1,2\r\n",
            '"\tplan","\tUniques"\r\n"\t(none)","12"\r\n"\tpremium","3"\r\n',
        ],
    )
    def test_given_a_chart_without_dates_when_extracted_then_the_user_can_mend_it(
        self, text: str
    ) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            extract_chart(envelope(text))
        assert failure.value.message == (
            "The CSV of the chart x8k2m1qp has no columns of dates, so that it can't be told what "
            "is a label in it and what a number. Have the chart show its figures over time, or "
            "take it out of the configuration."
        )
        assert failure.value.failure_type == FailureType.config_error

    def test_given_headings_only_when_extracted_then_there_are_no_records(self) -> None:
        assert extract_chart(chart()) == []

    @pytest.mark.parametrize(
        ("count", "warns"), [(299, False), (300, True), (301, False), (2_000, True), (10_000, True)]
    )
    def test_given_as_many_rows_as_amplitude_gives_at_most_when_extracted_then_the_log_says_so(
        self, count: int, warns: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = (f"user {n},{n}" for n in range(count))
        body = chart(*rows, headings="User,2025-01-06T00:00:00\r\n")
        assert [record["value"] for record in extract_chart(body)] == [*range(count)]
        message = (
            f"The chart x8k2m1qp came with {count:,} rows, which is the most that Amplitude "
            "gives for some kinds of charts: others may be missing. Give it fewer groups."
        )
        assert caplog.messages == [message] * warns

    def test_given_raw_text_when_its_handler_is_for_streams_then_it_is_let_through(self) -> None:
        handler = AmplitudeErrorHandler(parameters={}, config={}, is_streamed=True)
        answer = response(raw(HEADINGS), url=CHART_URL)
        assert handler.interpret_response(answer).response_action is ResponseAction.SUCCESS

    def test_given_a_large_chart_when_extracted_then_records_are_made_one_by_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []

        def cell(text: str, name: str) -> Any:
            read.append(text)
            return genuine(text, name)

        genuine = components._cell
        monkeypatch.setattr(components, "_cell", cell)
        answer = response(chart('"\tApp",1,2', '"\tWeb",3,4'), url=CHART_URL)
        next(iter(ChartExtractor().extract_records(answer)))
        # All of them to check the chart, and then the first row.
        assert read == ["1", "2", "3", "4", "1", "2"]


labels = (
    st.text("a |", min_size=1) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
).filter(lambda label: label == label.strip() and "[Previous]" not in label)
numbers = st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e300, 1e300)


@given(
    width=st.integers(1, 3),
    start=st.dates(date(2015, 1, 1), date(2040, 1, 1)),
    length=st.integers(1, 5),
    data=st.data(),
    in_envelope=st.booleans(),
    leaves_blank=st.booleans(),
    preamble=st.lists(st.lists(labels, max_size=3), max_size=3),
)
def test_given_any_labels_and_numbers_when_written_as_amplitude_does_then_all_come_out(
    width: int,
    start: date,
    length: int,
    data: st.DataObject,
    in_envelope: bool,
    leaves_blank: bool,
    preamble: list[list[str]],
) -> None:
    names = data.draw(st.lists(st.tuples(*[labels] * width), unique=True, max_size=6))
    dates = [f"{start + timedelta(days=n)}T00:00:00" for n in range(length)]
    rows = [(name, data.draw(st.tuples(*[numbers] * length))) for name in names]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    # What begins with a brace would be an answer of another kind.
    writer.writerow(["\tMy chart"])
    writer.writerows(preamble)
    writer.writerow([*(f"\tlabel {n}" for n in range(width)), *dates])
    above: tuple[str, ...] = ()
    for name, cells in rows:
        same = 0
        while leaves_blank and above[same : same + 1] == name[same : same + 1]:
            same += 1
        writer.writerow([*[""] * same, *(f"\t{label}" for label in name[same:]), *cells])
        above = name

    written = text.getvalue()
    records = extract_chart(envelope(written) if in_envelope else raw(written))

    assert len({r["series"] for r in records}) == len(rows)
    assert [(tuple(r["labels"].values()), r["date"], r["value"]) for r in records] == [
        (name, day, cell) for name, cells in rows for day, cell in zip(dates, cells, strict=True)
    ]
