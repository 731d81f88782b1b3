"""The sandbox, as a client that knows only Amplitude's documentation sees it."""

import csv
import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from sandbox import Fault, Project, Sandbox, experiments

# Their timing is their own: no other test of theirs beside them.
pytestmark = pytest.mark.xdist_group("sandbox")

NOW = datetime(2024, 1, 10, 12, 30, tzinfo=timezone.utc)
FIRST_HOUR = datetime(2024, 1, 10, 4, tzinfo=timezone.utc)
EMPTY_HOUR = datetime(2024, 1, 10, 6, tzinfo=timezone.utc)
DAYS: dict[str, Any] = {"start": "20240109", "end": "20240110"}
BEFORE: dict[str, Any] = {"start": "20240108", "end": "20240109"}
STANDARD, EU = "https://amplitude.com", "https://analytics.eu.amplitude.com"
DATA, EU_DATA = "https://data-api.amplitude.com", "https://data-api.eu.amplitude.com"
REPLAYS = "/api/1/session-replays"
LOOKUP_TABLE = "/api/3/lookup_table"
RETENTION: dict[str, Any] = {
    "se": '{"event_type":"_new"}',
    "re": '{"event_type":"_active"}',
    "rm": "nday",
}
SONGS: dict[str, Any] = {"e": json.dumps({"event_type": "Song Played 🎧"}), "i": "1"}
FORBIDDEN = {
    "error": {
        "http_code": 403,
        "type": "unspecified",
        "message": "Unspecified Error",
        "metadata": {"details": "Invalid API Key"},
    }
}


def project(**options: Any) -> Project:
    return Project(**{"first_hour": FIRST_HOUR, "empty_hours": frozenset([EMPTY_HOUR]), **options})


def get(
    sandbox: Sandbox,
    path: str,
    host: str = STANDARD,
    secret_key: str = "",
    timeout: float = 60,
    **params: str,
) -> requests.Response:
    return requests.get(
        host + path,
        params=params,
        auth=(sandbox.api_key, secret_key or sandbox.secret_key),
        proxies={"https": sandbox.env["HTTPS_PROXY"]},
        verify=sandbox.env["REQUESTS_CA_BUNDLE"],
        timeout=timeout,
    )


def held(until: Callable[[], object]) -> Callable[[bytes], bytes]:
    """The `transform` of a fault that keeps an answer back until something has come about."""

    def hold(body: bytes) -> bytes:
        last = time.monotonic() + 60
        while not until() and time.monotonic() < last:
            time.sleep(0.02)
        return body

    return hold


def taxonomy(
    sandbox: Sandbox, name: str, form: dict[str, str] | None = None, **params: str
) -> requests.Response:
    return requests.request(
        "GET",
        f"{STANDARD}/api/2/taxonomy/{name}",
        params=params,
        data=form,
        auth=(sandbox.api_key, sandbox.secret_key),
        proxies={"https": sandbox.env["HTTPS_PROXY"]},
        verify=sandbox.env["REQUESTS_CA_BUNDLE"],
        timeout=10,
    )


def export(sandbox: Sandbox, start: str, end: str) -> requests.Response:
    return get(sandbox, "/api/2/export", start=start, end=end)


def exported_events(body: bytes) -> list[dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        members = [gzip.decompress(archive.read(name)) for name in archive.namelist()]
    return [json.loads(line) for member in members for line in member.splitlines() if line]


def error_of(response: requests.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error["http_code"] == response.status_code
    return error


def details_of(response: requests.Response) -> str:
    """What says the error of an envelope of the usual form."""
    assert response.headers["Content-Type"] == "application/json"
    error = error_of(response)
    details = error["metadata"]["details"]
    assert error == {
        "http_code": response.status_code,
        "type": "unspecified",
        "message": "Unspecified Error",
        "metadata": {"details": details},
    }
    return str(details)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(project(), clock=lambda: NOW) as running:
        yield running


def test_given_the_same_arguments_when_generating_an_hour_twice_then_the_events_are_equal() -> None:
    assert project().events(FIRST_HOUR) == project().events(FIRST_HOUR)
    assert project(seed=8).events(FIRST_HOUR) != project().events(FIRST_HOUR)


def test_given_an_hour_when_generating_it_then_events_are_of_amplitudes_form_and_size() -> None:
    events = Project(events_per_hour=2000).events(FIRST_HOUR)

    assert {len(event) for event in events} == {55}
    assert {event["server_upload_time"][:14] for event in events} == {"2024-01-10 04:"}
    assert len({event["uuid"] for event in events}) == len(events)
    assert min(event["event_time"] for event in events) < "2024-01-06"
    sizes = [len(json.dumps(event, ensure_ascii=False).encode()) for event in events]
    assert min(sizes) > 1500
    assert max(sizes) < 2560


def test_given_events_when_generating_them_then_some_have_what_was_recorded_and_others_null() -> (
    None
):
    events = Project(events_per_hour=2000).events(FIRST_HOUR)

    ids = {str(event["amplitude_attribution_ids"]) for event in events}
    assert len(ids) > 2
    assert "None" in ids
    assert {
        event["platform"] for event in events if event["amplitude_attribution_ids"] is not None
    } == {"iOS", "Android"}
    [one] = next(filter(None, (event["amplitude_attribution_ids"] for event in events)))
    assert len(bytes.fromhex(one)) == 3
    assert {event["$schema"] for event in events} == {12, 13, None}
    for name in ("plan", "global_user_properties"):
        assert {str(event[name]) for event in events} == {"{}", "None"}
    keys = [event["$insert_key"] for event in events]
    assert None in keys
    assert all(re.fullmatch(r"[0-9a-f]{20}#\d+", key) for key in keys if key)
    assert {"path" in event["data"] for event in events} == {True, False}


def test_given_members_when_unpacked_then_some_end_with_a_blank_line() -> None:
    contents = [gzip.decompress(content) for _, content in project().members(FIRST_HOUR)]

    assert {content.endswith(b"}\n\n") for content in contents} == {True, False}
    assert all(content.count(b"\n\n") <= 1 for content in contents)


def test_given_a_quiet_day_when_asked_then_nobody_did_anything_on_it() -> None:
    day, eve = date(2024, 1, 9), date(2024, 1, 8)
    quiet, usual = Project(quiet_days=frozenset([day])), Project()
    noon = FIRST_HOUR.replace(day=9, hour=12)

    assert quiet.events(noon) == []
    assert [*quiet.iter_session_replays(noon, noon + timedelta(hours=1))] == []
    for metric in ("active", "new"):
        assert set(quiet.count_users(metric, [day], "country").values()) == {0}
    assert quiet.average_session_length(day) == quiet.sessions_per_user(day) == 0
    assert set(quiet.session_lengths(day).values()) == {0}
    assert quiet.count_events("totals", [day], "_all") == 0
    assert set(quiet.retained_users(day)) == {0}
    size, first, second, *others = usual.retained_users(eve)
    assert second > 0
    assert quiet.retained_users(eve) == [size, first, 0, *others]
    assert quiet.events(noon - timedelta(days=1)) == usual.events(noon - timedelta(days=1))


def test_given_a_quiet_week_when_asked_then_its_event_type_alone_is_missing() -> None:
    signed_up, first = "Signed Up", date(2024, 1, 2)
    quiet = Project(events_per_hour=400, quiet_weeks=frozenset([(signed_up, first)]))

    counts = [
        quiet.count_events("totals", [first + timedelta(days=n)], signed_up) for n in range(-1, 8)
    ]
    assert [bool(count) for count in counts] == [True, *[False] * 7, True]
    assert quiet.count_events("uniques", [first], "Page Viewed") > 0
    types = [
        {event["event_type"] for event in quiet.events(FIRST_HOUR.replace(day=n))} for n in (8, 9)
    ]
    assert types[1] - types[0] == {signed_up}


def test_given_a_project_without_events_when_asked_then_it_holds_nothing() -> None:
    nothing = Project(events_per_hour=0)

    assert nothing.members(FIRST_HOUR) == []
    assert set(nothing.active_users(NOW.date()).values()) == {0}
    assert nothing.average_session_length(NOW.date()) == 0


@pytest.mark.parametrize(
    "path",
    ["/api/2/users", "/api/3/cohorts", "/api/2/export", "/api/2/taxonomy/event", "/api/2/nothing"],
)
def test_given_a_wrong_secret_key_when_calling_then_403_has_the_recorded_body(
    sandbox: Sandbox, path: str
) -> None:
    response = get(sandbox, path, secret_key="0" * 32)

    assert (response.status_code, response.json()) == (403, FORBIDDEN)


@pytest.mark.parametrize(("eu", "home", "abroad"), [(False, STANDARD, EU), (True, EU, STANDARD)])
def test_given_a_key_of_one_region_when_used_in_the_other_then_it_looks_like_a_bad_key(
    eu: bool, home: str, abroad: str
) -> None:
    with Sandbox(project(), eu=eu) as sandbox:
        assert get(sandbox, "/api/2/events/list", home).status_code == 200
        response = get(sandbox, "/api/2/events/list", abroad)

    assert (response.status_code, response.json()) == (403, FORBIDDEN)


def test_given_an_unknown_path_when_calling_then_the_404_is_an_error_envelope(
    sandbox: Sandbox,
) -> None:
    response = get(sandbox, "/api/2/nothing")

    assert response.status_code == 404
    assert error_of(response)["metadata"] == {"details": "Not Found"}


def test_given_another_host_when_connecting_then_the_proxy_refuses_it(sandbox: Sandbox) -> None:
    with pytest.raises(requests.exceptions.ProxyError, match="502"):
        get(sandbox, "/", "https://example.com")

    assert sandbox.refused_targets == ["example.com:443"]
    assert sandbox.requests == []


def test_given_hours_with_data_when_exporting_then_the_zip_holds_gzipped_lines_equal_to_the_truth(
    sandbox: Sandbox,
) -> None:
    response = export(sandbox, "20240110T04", "20240110T05")

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/zip"
    assert response.headers["Transfer-Encoding"] == "chunked"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:2] == [
            "187520/187520_2024-01-10_4#0.json.gz",
            "187520/187520_2024-01-10_4#1.json.gz",
        ]
    truth = [
        event
        for hour in (FIRST_HOUR, FIRST_HOUR + timedelta(hours=1))
        for event in sandbox.project.events(hour)
    ]
    assert exported_events(response.content) == truth


def test_given_an_hour_that_closed_less_than_two_hours_ago_when_exporting_then_it_is_left_out(
    sandbox: Sandbox,
) -> None:
    response = export(sandbox, "20240110T09", "20240110T10")

    ninth_hour = datetime(2024, 1, 10, 9, tzinfo=timezone.utc)
    assert exported_events(response.content) == sandbox.project.events(ninth_hour)
    assert sandbox.exportable_hours(ninth_hour, NOW) == [ninth_hour]

    sandbox.export_delay = timedelta(hours=1)

    assert len(sandbox.exportable_hours(ninth_hour, NOW)) == 2


@pytest.mark.parametrize("hour", ["20240110T03", "20240110T06", "20240110T10", "20240111T00"])
def test_given_no_exportable_data_when_exporting_then_404_has_the_recorded_body(
    sandbox: Sandbox, hour: str
) -> None:
    response = export(sandbox, hour, hour)

    assert response.status_code == 404
    assert details_of(response) == "Raw data files were not found."


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024011004", "20240110T05"),
        ("20240110T24", "20240111T05"),
        ("20240110T05", "20240110T04"),
        ("20230110T00", "20240110T00"),
    ],
)
def test_given_a_malformed_or_too_long_range_when_exporting_then_400(
    sandbox: Sandbox, start: str, end: str
) -> None:
    response = export(sandbox, start, end)

    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid"


def test_given_an_archive_above_the_size_limit_when_exporting_then_400_until_the_range_is_smaller(
    sandbox: Sandbox,
) -> None:
    sandbox.size_limit = 40_000

    assert export(sandbox, "20240110T04", "20240110T09").status_code == 400
    assert export(sandbox, "20240110T04", "20240110T04").status_code == 200


@pytest.mark.parametrize("events_per_hour", [40, 4000])
def test_given_a_project_when_estimating_its_archive_then_it_is_about_as_large_as_the_real_one(
    events_per_hour: int,
) -> None:
    hours = [FIRST_HOUR + timedelta(hours=n) for n in range(4)]
    large = Project(events_per_hour=events_per_hour)

    actual = sum(len(content) for hour in hours for _, content in large.members(hour))
    assert large.archive_bytes(hours) == pytest.approx(actual, rel=0.1)


def test_given_days_in_the_future_when_asking_for_users_then_they_are_0(sandbox: Sandbox) -> None:
    response = get(sandbox, "/api/2/users", m="active", i="1", start="20240109", end="20240112")

    today = sum(sandbox.project.active_users(NOW.date()).values())
    assert today > 0
    assert response.json()["data"] == {
        "xValues": ["2024-01-09", "2024-01-10", "2024-01-11", "2024-01-12"],
        "series": [[0, today, 0, 0]],
        "seriesCollapsed": [[0]],
        "seriesLabels": [0],
        "seriesMeta": [{"segmentIndex": 0}],
    }


@pytest.mark.parametrize("metric", ["active", "new"])
@pytest.mark.parametrize("group", [{}, {"g": "country"}], ids=["all", "by-country"])
def test_given_days_without_users_when_asking_for_them_then_there_is_no_series(
    sandbox: Sandbox, metric: str, group: dict[str, Any]
) -> None:
    data = get(sandbox, "/api/2/users", m=metric, **group, **BEFORE).json()["data"]

    assert data == {
        "xValues": ["2024-01-08", "2024-01-09"],
        "series": [],
        "seriesCollapsed": [],
        "seriesLabels": [],
        "seriesMeta": [],
    }


@pytest.mark.parametrize(
    ("path", "params", "beside"),
    [
        ("/api/2/users", {}, set()),
        ("/api/2/sessions/average", {}, set()),
        ("/api/2/sessions/peruser", {}, set()),
        ("/api/2/sessions/length", {}, {"withSets"}),
        ("/api/2/composition", {"p": "platform"}, set()),
        ("/api/2/events/segmentation", SONGS, set()),
        ("/api/2/retention", RETENTION, set()),
        ("/api/2/revenue/ltv", {}, set()),
    ],
)
def test_given_a_query_when_answered_then_fields_about_the_answer_stand_beside_the_data(
    sandbox: Sandbox, path: str, params: dict[str, Any], beside: set[str]
) -> None:
    body = get(sandbox, path, **params, **DAYS).json()

    fields = {*body} - {"data"}
    assert fields >= {"timeComputed", "wasCached", "backend", "novaCost", "queryIds"} | beside
    assert fields >= {"perQueryMetadata", "prunedResult", "realtimeDataMissing"}
    assert body.get("withSets") is (False if beside else None)


def test_given_a_project_time_zone_when_its_day_has_not_begun_then_nobody_was_active() -> None:
    with Sandbox(project(), clock=lambda: NOW, project_timezone="Pacific/Kiritimati") as sandbox:
        tomorrow = get(sandbox, "/api/2/users", start="20240111", end="20240111")
        sandbox.project_timezone = "UTC"
        future = get(sandbox, "/api/2/users", start="20240111", end="20240111")

    assert len(tomorrow.json()["data"]["series"]) == 1
    assert future.json()["data"]["series"] == []


@pytest.mark.parametrize("metric", ["active", "new"])
def test_given_grouping_by_country_when_asking_for_users_then_labels_are_the_countries(
    sandbox: Sandbox, metric: str
) -> None:
    data = get(sandbox, "/api/2/users", m=metric, g="country", **DAYS).json()["data"]

    truth = {
        "active": sandbox.project.active_users(date(2024, 1, 10)),
        "new": sandbox.project.new_users(date(2024, 1, 10)),
    }[metric]
    assert "(none)" in data["seriesLabels"]
    assert {k: v[1] for k, v in zip(data["seriesLabels"], data["series"], strict=True)} == truth


def test_given_a_project_without_country_when_grouping_by_it_then_400_has_the_captured_body() -> (
    None
):
    with Sandbox(project(has_country=False), clock=lambda: NOW) as sandbox:
        grouped = get(sandbox, "/api/2/users", g="country", **DAYS)
        ungrouped = get(sandbox, "/api/2/users", **DAYS)

    assert grouped.status_code == 400
    assert error_of(grouped) == {
        "http_code": 400,
        "type": "invalid",
        "message": "Invalid chart definition",
        "metadata": {"details": "Invalid user property country"},
    }
    assert ungrouped.status_code == 200


@pytest.fixture
def old() -> Iterator[Sandbox]:
    """A project that has existed for years."""
    with Sandbox(Project(), clock=lambda: NOW, cost_limits=()) as running:
        yield running


@pytest.mark.parametrize("metric", ["active", "new"])
@pytest.mark.parametrize(
    ("interval", "labels"),
    [
        (7, ["2023-12-25", "2024-01-01", "2024-01-08", "2024-01-15"]),
        (30, ["2023-12-01", "2024-01-01"]),
    ],
)
def test_given_whole_weeks_and_months_when_asking_for_users_then_they_are_the_truth(
    old: Sandbox, metric: str, interval: int, labels: list[str]
) -> None:
    start, end = {7: ("20231225", "20240121"), 30: ("20231201", "20240131")}[interval]
    data = get(old, "/api/2/users", m=metric, i=str(interval), start=start, end=end).json()["data"]

    truth = [old.count_users(metric, date.fromisoformat(label), interval) for label in labels]
    assert data["xValues"] == labels
    assert data["series"] == [[sum(users.values()) for users in truth]]


def test_given_a_range_within_a_week_when_asking_for_users_then_they_are_of_that_range_alone(
    old: Sandbox,
) -> None:
    # Friday to Tuesday.
    data = get(old, "/api/2/users", i="7", start="20240105", end="20240109").json()["data"]

    first, second = date(2024, 1, 5), date(2024, 1, 8)
    days = [[first + timedelta(days=n) for n in range(3)], [second, date(2024, 1, 9)]]
    parts = [old.project.count_users("active", span)["(all)"] for span in days]
    wholes = [old.count_users("active", day, 7)["(all)"] for day in (first, second)]
    assert data["xValues"] == ["2024-01-01", "2024-01-08"]
    assert data["series"] == [parts]
    assert all(0 < part < whole for part, whole in zip(parts, wholes, strict=True))


def test_given_several_days_when_counting_users_then_who_comes_again_counts_once(
    old: Sandbox,
) -> None:
    week = [date(2024, 1, 1) + timedelta(days=n) for n in range(7)]
    by_day = {m: [old.count_users(m, day)["(all)"] for day in week] for m in ("active", "new")}

    assert max(by_day["active"]) < old.count_users("active", week[0], 7)["(all)"]
    assert old.count_users("active", week[0], 7)["(all)"] < sum(by_day["active"])
    assert old.count_users("new", week[0], 7)["(all)"] == sum(by_day["new"])


@pytest.mark.parametrize("by", ["platform", "gp:plan"])
def test_given_a_property_when_grouping_users_by_it_then_all_are_under_one_of_its_values(
    sandbox: Sandbox, by: str
) -> None:
    data = get(sandbox, "/api/2/users", g=by, **DAYS).json()["data"]

    truth = sandbox.count_users("active", NOW.date(), by=by)
    assert {k: v[1] for k, v in zip(data["seriesLabels"], data["series"], strict=True)} == truth
    assert sum(truth.values()) == sandbox.count_users("active", NOW.date())["(all)"]


@pytest.mark.parametrize("by", ["gp:nothing", "city"])
def test_given_an_unknown_property_when_grouping_by_it_then_400_names_it(
    sandbox: Sandbox, by: str
) -> None:
    refused = get(sandbox, "/api/2/users", g=by, **DAYS)

    assert refused.status_code == 400
    assert error_of(refused)["metadata"] == {"details": f"Invalid user property {by}"}


def test_given_days_when_asking_for_sessions_per_user_then_they_are_the_truth(
    sandbox: Sandbox,
) -> None:
    data = get(sandbox, "/api/2/sessions/peruser", start="20240109", end="20240111").json()["data"]

    sessions = sandbox.project.sessions_per_user(date(2024, 1, 10))
    assert sessions > 1
    assert data == {
        "xValues": ["2024-01-09T00:00:00", "2024-01-10T00:00:00", "2024-01-11T00:00:00"],
        "series": [[0, sessions, 0]],
        "seriesMeta": [{"segmentIndex": 0, "sessionIndex": 0}],
    }


@pytest.mark.parametrize("name", ["average", "peruser"])
def test_given_days_without_sessions_when_asking_for_a_mean_then_it_is_one_series_of_0(
    sandbox: Sandbox, name: str
) -> None:
    assert get(sandbox, f"/api/2/sessions/{name}", **BEFORE).json()["data"] == {
        "xValues": ["2024-01-08T00:00:00", "2024-01-09T00:00:00"],
        "series": [[0, 0]],
        "seriesMeta": [{"segmentIndex": 0, "sessionIndex": 0}],
    }


def test_given_days_without_sessions_when_asking_for_their_lengths_then_arrays_are_empty(
    sandbox: Sandbox,
) -> None:
    body = get(sandbox, "/api/2/sessions/length", **BEFORE).json()

    assert (body["data"], body["withSets"]) == ({"xValues": [], "series": []}, False)


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/api/2/sessions/average", {}),
        ("/api/2/sessions/peruser", {}),
        ("/api/2/sessions/length", {}),
        ("/api/2/composition", {"p": "country"}),
    ],
)
def test_given_days_before_the_cutoff_when_asking_for_them_then_403_and_it_costs_nothing(
    old: Sandbox, path: str, params: dict[str, Any]
) -> None:
    last = get(old, path, **params, start="20230110", end="20230110")
    refused = get(old, path, **params, start="20230109", end="20230110")
    old.history_days = 366
    again = get(old, path, **params, start="20230109", end="20230110")

    assert (last.status_code, refused.status_code, again.status_code) == (200, 403, 200)
    assert details_of(refused) == "Date too far back"
    assert [bool(request.cost) for request in old.requests] == [True, False, True]
    assert get(old, "/api/2/users", start="20200101", end="20200101").status_code == 200


def test_given_days_when_asking_for_the_composition_then_users_of_all_are_counted_by_value(
    old: Sandbox,
) -> None:
    span: dict[str, Any] = {"start": "20240109", "end": "20240112"}
    data = get(old, "/api/2/composition", p="gp:plan", **span).json()["data"]

    days = [date(2024, 1, 9), date(2024, 1, 10)]
    users = old.project.count_users("active", days, "gp:plan")
    assert data == {
        "xValues": ["free", "pro", "family", "(none)"],
        "series": [[users[plan] for plan in ("free", "pro", "family", "(none)")]],
        "seriesLabels": ["gp:plan"],
    }
    assert old.requests[-1].cost == 4
    records = old.composition([("p", "gp:plan"), *span.items()])
    assert records[0] == {
        "date": "2024-01-09",
        "property": "gp:plan",
        "value": "free",
        "users": old.count_users("active", days[0], by="gp:plan")["free"],
    }
    assert [(row["date"], row["value"]) for row in records] == [
        (f"{day}", value) for day in days for value in data["xValues"]
    ]


def test_given_days_without_users_when_asking_for_the_composition_then_arrays_are_empty(
    sandbox: Sandbox,
) -> None:
    data = get(sandbox, "/api/2/composition", p="country", **BEFORE).json()["data"]

    assert data == {"xValues": [], "series": [], "seriesLabels": []}
    assert sandbox.composition([("p", "country"), *BEFORE.items()]) == []


def test_given_days_when_asking_for_session_lengths_then_one_histogram_is_of_all_that_have_begun(
    old: Sandbox,
) -> None:
    data = get(old, "/api/2/sessions/length", start="20240109", end="20240112").json()["data"]

    days = [old.project.session_lengths(date(2024, 1, day)) for day in (9, 10)]
    assert data["xValues"] == [*days[0]]
    assert data["xValues"][:2] == ["0s-3s", "3s-10s"]
    assert data["xValues"][-1] == "3600s-86400s"
    assert data["series"] == [[days[0][label] + days[1][label] for label in days[0]]]


def cell(count: int, size: int, incomplete: bool) -> dict[str, Any]:
    ids = {"retainedSetId": None, "dropoffSetId": None}
    return {"count": count, "outof": size, "incomplete": incomplete, **ids}


@pytest.mark.parametrize("mode", [{"rm": "nday"}, {}], ids=["nday", "none"])
def test_given_cohorts_when_asking_for_retention_then_cells_end_with_today(
    old: Sandbox, mode: dict[str, Any]
) -> None:
    events = {name: RETENTION[name] for name in ("se", "re")}
    response = get(old, "/api/2/retention", **events, **mode, start="20231231", end="20240111")
    data = response.json()["data"]

    assert data["seriesMeta"] == [{"segmentIndex": 0, "eventIndex": 0}]
    (series,) = data["series"]
    assert series["dates"][:2] == ["Jan 10, 2024", "Jan 09, 2024"]
    assert series["dates"][-2:] == ["Jan 01, 2024", "Dec 31, 2023"]
    values = series["values"]
    assert [*values] == series["dates"]
    size, *came = old.project.retained_users(date(2024, 1, 8))
    assert values["Jan 08, 2024"] == [
        cell(size, size, False),
        cell(came[0], size, False),
        cell(came[1], size, True),
        cell(came[2], size, True),
    ]
    assert [each["incomplete"] for each in values["Jan 09, 2024"]] == [False, True, True]
    assert [each["incomplete"] for each in values["Jan 10, 2024"]] == [True, True]
    assert values["Dec 31, 2023"] == old.retention(date(2023, 12, 31))
    assert series["combined"][0] == {
        "count": sum(cells[0]["count"] for cells in values.values()),
        "outof": sum(cells[0]["outof"] for cells in values.values()),
        "retainedSetId": None,
        "incomplete": True,
    }
    assert len(series["combined"]) == 12


def test_given_an_old_cohort_when_asking_for_retention_then_it_goes_on_to_today(
    old: Sandbox,
) -> None:
    response = get(old, "/api/2/retention", **RETENTION, start="20231001", end="20231001")

    cells = response.json()["data"]["series"][0]["values"]["Oct 01, 2023"]
    assert len(cells) == 1 + 102
    assert [each["incomplete"] for each in cells] == [False] * 101 + [True] * 2
    assert all(each["count"] <= each["outof"] for each in cells)
    assert old.retention(date(2023, 10, 1)) == cells[:32]


def test_given_a_cohort_of_nobody_when_asking_for_retention_then_its_cells_are_0(
    sandbox: Sandbox,
) -> None:
    data = get(sandbox, "/api/2/retention", **RETENTION, **BEFORE).json()["data"]

    (series,) = data["series"]
    assert series["dates"] == ["Jan 09, 2024", "Jan 08, 2024"]
    assert series["values"]["Jan 09, 2024"] == [
        cell(0, 0, False),
        cell(0, 0, True),
        cell(0, 0, True),
    ]


@pytest.mark.parametrize("mode", ["n-day", "once"])
def test_given_a_mode_that_is_none_when_asking_for_retention_then_400_has_the_recorded_text(
    sandbox: Sandbox, mode: str
) -> None:
    refused = get(sandbox, "/api/2/retention", **{**RETENTION, "rm": mode}, **DAYS)

    assert refused.status_code == 400
    assert error_of(refused)["metadata"] == {"details": "Invalid retention method."}


def test_given_cohorts_when_asking_for_ltv_then_days_that_have_not_come_are_0_and_not_complete(
    old: Sandbox,
) -> None:
    span: dict[str, Any] = {"start": "20230624", "end": "20240111"}
    data = get(old, "/api/2/revenue/ltv", m="2", i="1", **span).json()["data"]

    assert data["seriesLabels"] == [""]
    (series,) = data["series"]
    assert series["dates"][:2] == ["Jan 10", "Jan 09"]
    assert series["dates"][-1] == "Jun 24"
    assert [*series["values"]] == [*series["complete"]] == series["dates"]
    cohort, complete = series["values"]["Jan 09"], series["complete"]["Jan 09"]
    steps = (1, 7, 14, 30, 60, 90, 180)
    assert [*cohort] == [
        *("paid", "count"),
        *(f"r{n}d" for n in range(1, 181)),
        *(f"r{n}new" for n in steps),
        *("rtotal", "rtotalnew", "total_amount"),
    ]
    assert 0 < cohort["r1d"] < cohort["r2d"] == cohort["total_amount"]
    assert {cohort[f"r{n}d"] for n in range(3, 181)} == {0}
    assert [*complete.items()][:3] == [("r1d", True), ("r2d", False), ("r3d", False)]
    assert {n: complete[f"r{n}d"] for n in range(2, 181)} == dict.fromkeys(range(2, 181), False)
    assert set(series["complete"]["Jan 10"].values()) == {False}
    assert set(series["complete"]["Jun 24"].values()) == {True}
    mature = series["values"]["Jun 24"]
    assert mature == old.project.revenue_ltv(date(2023, 6, 24), NOW.date())
    assert mature["r90d"] < mature["r180d"] < mature["total_amount"]
    paid = sum(cells["paid"] for cells in series["values"].values())
    assert series["combined"]["paid"] == series["combined_projected"]["paid"] == paid
    assert set(series["combined_complete"].values()) == {False}


def test_given_revenue_when_asking_for_it_per_user_then_it_is_divided(old: Sandbox) -> None:
    data = get(old, "/api/2/revenue/ltv", start="20240109", end="20240109").json()["data"]

    truth = old.project.revenue_ltv(date(2024, 1, 9), NOW.date())
    cells = data["series"][0]["values"]["Jan 09"]
    assert cells["r1d"] == round(truth["r1d"] / truth["count"], 2)
    assert cells["total_amount"] == truth["total_amount"]


def test_given_a_cohort_of_nobody_when_asking_for_ltv_then_its_cells_are_0(
    sandbox: Sandbox,
) -> None:
    data = get(sandbox, "/api/2/revenue/ltv", **BEFORE).json()["data"]

    (series,) = data["series"]
    assert series["dates"] == ["Jan 09", "Jan 08"]
    assert set(series["values"]["Jan 08"].values()) == {0}


@pytest.mark.parametrize("metric", ["totals", "uniques"])
def test_given_an_event_when_segmenting_then_counts_are_those_of_the_truth(
    old: Sandbox, metric: str
) -> None:
    path = "/api/2/events/segmentation"
    data = get(old, path, **SONGS, m=metric, start="20240109", end="20240111").json()["data"]

    days = [date(2024, 1, 9), date(2024, 1, 10)]
    counts = [old.project.count_events(metric, [day], "Song Played 🎧") for day in days]
    total = old.project.count_events(metric, days, "Song Played 🎧")
    assert data == {
        "xValues": ["2024-01-09", "2024-01-10", "2024-01-11"],
        "series": [[*counts, 0]],
        "seriesCollapsed": [[{"setId": "", "value": total}]],
        "seriesLabels": [0],
    }
    assert total == sum(counts) if metric == "totals" else max(counts) < total < sum(counts)


def test_given_a_project_without_events_when_asking_for_figures_then_all_are_0() -> None:
    nothing, day = Project(events_per_hour=0), NOW.date()

    assert nothing.count_users("active", [day]) == {"(all)": 0}
    assert nothing.sessions_per_user(day) == 0
    assert set(nothing.session_lengths(day).values()) == {0}
    assert set(nothing.retained_users(day)) == {0}
    assert set(nothing.revenue_ltv(day, day).values()) == {0}
    assert nothing.count_events("uniques", [day], "Signed Up") == 0
    assert [*nothing.iter_session_replays(FIRST_HOUR, NOW)] == []
    assert nothing.deletion_jobs(day - timedelta(days=90), day, day) == []


@pytest.mark.parametrize(
    ("path", "params", "details"),
    [
        ("/api/2/users", {"i": "2"}, "Invalid parameter i"),
        ("/api/2/users", {"m": "old"}, "Invalid parameter m"),
        ("/api/2/users", {"s": "[]"}, "Invalid parameter s"),
        ("/api/2/sessions/peruser", {"g": "country"}, "Invalid parameter g"),
        ("/api/2/retention", {**RETENTION, "se": '{"event_type":"_all"}'}, "Invalid event _all"),
        ("/api/2/revenue/ltv", {"m": "4"}, "Invalid parameter m"),
        ("/api/2/composition", {}, "Invalid parameter p"),
        ("/api/2/composition", {"p": "shoe"}, "Invalid user property shoe"),
        ("/api/2/composition", {"p": "country", "i": "1"}, "Invalid parameter i"),
        (
            "/api/2/events/segmentation",
            {"e": '{"event_type":"Fax Sent"}'},
            "Invalid event Fax Sent",
        ),
        (
            "/api/2/events/segmentation",
            {"e": '{"event_type":"Signed Up","group_by":[{"type":"user"}]}'},
            "Invalid parameter e",
        ),
        ("/api/2/users", {"end": "20240101"}, "The start is after the end"),
        ("/api/2/users", {"start": "2024-01-09"}, "Invalid date '2024-01-09'"),
    ],
)
def test_given_parameters_that_make_no_query_when_asking_then_400_names_them(
    sandbox: Sandbox, path: str, params: dict[str, Any], details: str
) -> None:
    refused = get(sandbox, path, **{**DAYS, **params})

    assert refused.status_code == 400
    assert error_of(refused)["metadata"] == {"details": details}
    assert get(sandbox, "/api/2/events/segmentation", **DAYS).status_code == 400


def test_given_the_taxonomy_when_asking_then_each_list_is_the_truth(sandbox: Sandbox) -> None:
    truth = {
        "event": sandbox.project.event_types(show_deleted=False),
        "category": sandbox.project.event_categories(),
        "event-property": sandbox.project.event_properties(),
        "user-property": sandbox.project.user_properties(show_deleted=False),
        "group-property": sandbox.project.group_properties(),
    }

    for name, rows in truth.items():
        response = taxonomy(sandbox, name)
        assert (response.status_code, response.json()) == (200, {"success": True, "data": rows})
        assert rows


@pytest.mark.parametrize(
    ("name", "key", "deleted"),
    [("event", "event_type", "Song Skipped"), ("user-property", "user_property", "gp:shoe_size")],
)
def test_given_something_deleted_when_listing_then_it_shows_only_on_demand(
    sandbox: Sandbox, name: str, key: str, deleted: str
) -> None:
    every, some = (
        {row[key] for row in taxonomy(sandbox, name, showDeleted=shown).json()["data"]}
        for shown in ("true", "false")
    )

    assert every - some == {deleted}


def test_given_an_event_type_in_the_query_when_asking_for_properties_then_they_are_its_own(
    sandbox: Sandbox,
) -> None:
    names = [row["event_type"] for row in sandbox.project.event_types()]
    answers = {name: taxonomy(sandbox, "event-property", event_type=name) for name in names}

    for name, answer in answers.items():
        assert answer.json()["data"] == sandbox.project.event_properties(name)
        assert {row["event_type"] for row in answer.json()["data"]} <= {name}
    assert [len(answer.json()["data"]) for answer in answers.values()] == [1, 3, 0, 2, 1, 0]
    unknown = taxonomy(sandbox, "event-property", event_type="Fax Sent")
    assert (unknown.status_code, unknown.json()) == (
        400,
        {"success": False, "errors": [{"message": "Not found"}]},
    )


def test_given_no_event_type_or_one_in_a_form_when_asking_for_properties_then_all_are_listed(
    sandbox: Sandbox,
) -> None:
    everything = taxonomy(sandbox, "event-property").json()["data"]
    by_form = taxonomy(sandbox, "event-property", {"event_type": "Page Viewed"}).json()["data"]

    assert {row["event_type"] for row in everything} == {
        *(None, "Page Viewed", "Song Played 🎧", "Checkout Completed", "Signed Up")
    }
    assert len(everything) == 9
    assert by_form == everything
    assert sandbox.requests[-1].form == {"event_type": "Page Viewed"}


def test_given_a_group_type_when_asking_for_its_properties_then_others_are_left_out(
    sandbox: Sandbox,
) -> None:
    by_form = taxonomy(sandbox, "group-property", {"group_type": "company"}).json()["data"]
    by_query = taxonomy(sandbox, "group-property", group_type="company").json()["data"]

    assert by_form == by_query == sandbox.project.group_properties("company")
    assert {row["group_type"] for row in by_form} == {"company"}
    everything = taxonomy(sandbox, "group-property").json()["data"]
    assert {row["group_type"] for row in everything} == {"company", "team", None}


def test_given_a_fault_for_an_event_type_when_others_are_asked_for_then_it_does_not_apply(
    sandbox: Sandbox,
) -> None:
    path = "/api/2/taxonomy/event-property"
    sandbox.inject(Fault(path, status=400, when=lambda p: p.get("event_type") == "Signed Up"))

    statuses = [
        taxonomy(sandbox, "event-property", {"event_type": name}).status_code
        for name in ("Page Viewed", "Signed Up")
    ]
    assert statuses == [200, 400]


def test_given_four_taxonomy_requests_in_progress_when_a_fifth_arrives_then_it_alone_gets_429(
    sandbox: Sandbox,
) -> None:
    answer = threading.Event()
    sandbox.inject(Fault("/api/2/taxonomy/*", times=4, transform=held(answer.is_set)))

    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(taxonomy, sandbox, "category") for _ in range(4)]
        while len(sandbox.requests) < 4:
            time.sleep(0.02)
        refused = taxonomy(sandbox, "category")
        other = get(sandbox, "/api/2/events/list")
        answer.set()

    assert refused.status_code == 429
    assert refused.json()["success"] is False
    assert other.status_code == 200
    assert {request.result().status_code for request in busy} == {200}


def test_given_a_spent_taxonomy_budget_when_asking_then_429_and_the_dashboard_has_its_own() -> None:
    with Sandbox(project(), taxonomy_limits=[(2, 60)]) as sandbox:
        statuses = [taxonomy(sandbox, "category").status_code for _ in range(3)]
        dashboard = get(sandbox, "/api/2/events/list")

    assert statuses == [200, 200, 429]
    assert dashboard.status_code == 200


def test_given_replays_when_paging_then_every_one_comes_once_in_either_order(
    old: Sandbox,
) -> None:
    span: dict[str, Any] = {
        "start_time": "2024-01-09T03:00:00Z",
        "end_time": "2024-01-10T12:00:00Z",
    }
    truth = [*old.iter_session_replays(NOW.replace(day=9, hour=3, minute=0), NOW)]
    truth = [replay for replay in truth if replay["start_time"] <= "2024-01-10T12:00:00"]

    for order in ("asc", "desc"):
        pages: list[list[dict[str, Any]]] = []
        token: dict[str, Any] = {}
        while not pages or token:
            answer = get(old, REPLAYS, **span, **token, sort_order=order, page_size="60").json()
            pages.append(answer["session_replays"])
            token = {"page_token": t} if (t := answer["next_page_token"]) else {}
        assert {len(page) for page in pages[:-1]} == {60}
        assert 1 <= len(pages[-1]) <= 60
        assert [*chain(*pages)] == (truth if order == "asc" else truth[::-1])
    assert len({replay["replay_id"] for replay in truth}) == len(truth) > 120


def test_given_no_parameters_when_listing_replays_then_50_of_the_last_90_days_come_oldest_first(
    old: Sandbox,
) -> None:
    page = get(old, REPLAYS).json()["session_replays"]

    assert len(page) == 50
    assert page == [*islice(old.iter_session_replays(), 50)]
    assert page[0]["start_time"] >= "2023-10-12T12:30:00"
    assert page[0]["replay_id"] == f"{page[0]['device_id']}/{page[0]['session_id']}"
    assert page[0]["retention_in_days"] == 90


def test_given_replays_when_listed_then_their_times_have_no_zone_and_some_a_fraction(
    old: Sandbox,
) -> None:
    page = get(old, REPLAYS, page_size="200").json()["session_replays"]

    forms = {
        re.sub(r"\d", "0", replay[name]) for replay in page for name in ("start_time", "end_time")
    }
    assert forms == {"0000-00-00T00:00:00", "0000-00-00T00:00:00.000000"}
    assert all(replay["start_time"] < replay["end_time"] for replay in page)


@pytest.mark.parametrize("has_fraction", [True, False])
def test_given_both_bounds_when_listing_replays_then_both_are_inclusive(
    old: Sandbox, has_fraction: bool
) -> None:
    moment = next(
        replay["start_time"]
        for replay in old.iter_session_replays(FIRST_HOUR)
        if ("." in replay["start_time"]) is has_fraction
    )

    page = get(old, REPLAYS, start_time=f"{moment}Z", end_time=f"{moment}Z").json()
    assert {replay["start_time"] for replay in page["session_replays"]} == {moment}
    assert page["next_page_token"] is None


def test_given_the_present_when_listing_replays_then_none_starts_or_ends_after_it(
    old: Sandbox,
) -> None:
    page = get(old, REPLAYS, start_time="2024-01-10T12:00:00Z", page_size="200").json()

    assert page["session_replays"]
    ends = {replay["end_time"] for replay in page["session_replays"]}
    assert max(ends) == "2024-01-10T12:30:00"


@pytest.mark.parametrize(
    "params",
    [
        {"page_size": "201"},
        {"page_size": "0"},
        {"page_size": "many"},
        {"sort_order": "up"},
        {"start_time": "2024-01-10"},
        {"end_time": "yesterday"},
        {"page_token": "nonsense"},
        {"page_token": "W10="},
        {"limit": "5"},
    ],
    ids=str,
)
def test_given_a_wrong_parameter_when_listing_replays_then_400_has_the_documented_body(
    sandbox: Sandbox, params: dict[str, Any]
) -> None:
    response = get(sandbox, REPLAYS, **params)

    assert response.status_code == 400
    assert [*response.json()] == ["error"]


def test_given_a_page_token_when_the_order_changes_then_400(old: Sandbox) -> None:
    token = get(old, REPLAYS).json()["next_page_token"]

    assert get(old, REPLAYS, page_token=token).status_code == 200
    assert get(old, REPLAYS, page_token=token, sort_order="desc").status_code == 400


def test_given_wrong_keys_when_asking_for_replays_or_tables_then_the_form_is_theirs(
    sandbox: Sandbox,
) -> None:
    replays = get(sandbox, REPLAYS, secret_key="0" * 32)
    tables = get(sandbox, LOOKUP_TABLE, DATA, secret_key="0" * 32)

    assert (replays.status_code, replays.json()) == (401, {"error": "Invalid API credentials"})
    assert (tables.status_code, tables.json()["statusCode"]) == (403, 403)


@pytest.mark.parametrize(("eu", "home", "abroad"), [(False, DATA, EU_DATA), (True, EU_DATA, DATA)])
def test_given_lookup_tables_when_asked_of_the_data_host_then_they_are_the_truth(
    eu: bool, home: str, abroad: str
) -> None:
    with Sandbox(project(), eu=eu) as sandbox:
        response = get(sandbox, LOOKUP_TABLE, home)
        elsewhere = get(sandbox, LOOKUP_TABLE, abroad)
        main = get(sandbox, LOOKUP_TABLE, EU if eu else STANDARD)
        events = get(sandbox, "/api/2/events/list", home)

    assert response.json() == sandbox.project.lookup_tables()
    assert (elsewhere.status_code, main.status_code, events.status_code) == (403, 404, 404)


def test_given_a_lookup_table_when_downloading_it_then_the_csv_holds_its_rows(
    sandbox: Sandbox,
) -> None:
    for table in sandbox.project.lookup_tables():
        response = get(sandbox, f"{LOOKUP_TABLE}/{quote(table['name'], safe='')}/csv", DATA)

        assert response.headers["Content-Type"].startswith("text/csv")
        assert response.headers["Transfer-Encoding"] == "chunked"
        rows = [*csv.DictReader(io.StringIO(response.content.decode(), newline=""))]
        assert rows == sandbox.project.lookup_rows(table["name"])
        assert (len(rows), len(response.content)) == (table["rowCount"], table["sizeBytes"])
        header = [table["keyColumnHeader"], *table["columnHeaders"]]
        assert response.text.splitlines()[0] == ",".join(header)


def test_given_no_such_table_when_downloading_it_then_400_has_the_documented_body(
    sandbox: Sandbox,
) -> None:
    response = get(sandbox, f"{LOOKUP_TABLE}/nothing/csv", DATA)

    assert (response.status_code, response.json()) == (
        400,
        {
            "statusCode": 400,
            "message": "Lookup table nothing does not exist",
            "errorCode": "LOOKUP_TABLE_DOES_NOT_EXIST",
            "extraParams": {},
        },
    )


def test_given_deletion_jobs_when_asking_then_they_are_the_truth_of_today(old: Sandbox) -> None:
    span: dict[str, Any] = {"start_day": "2023-12-01", "end_day": "2024-02-29"}
    jobs = get(old, "/api/2/deletions/users", **span).json()

    assert jobs == old.project.deletion_jobs(date(2023, 12, 1), date(2024, 2, 29), NOW.date())
    assert {job["status"] for job in jobs} == {"staging", "submitted", "done"}
    assert {job["status"] for job in jobs if job["day"] > "2024-01-14"} == {"staging"}
    assert max(job["day"] for job in jobs) < "2024-02-10"
    assert {job["app"] for job in jobs} == {"187520"}
    assert {job["active_scrub_done_date"] is None for job in jobs} == {True, False}
    requests_ = [one for job in jobs for one in job["amplitude_ids"]]
    assert {*requests_[0]} == {"amplitude_id", "requested_on_day", "requester"}
    assert max(one["requested_on_day"] for one in requests_) <= "2024-01-10"


def test_given_no_deletion_jobs_when_asking_then_the_empty_list_comes_as_a_page(
    sandbox: Sandbox,
) -> None:
    day: dict[str, Any] = {"start_day": "2020-01-01", "end_day": "2020-01-01"}
    response = get(sandbox, "/api/2/deletions/users", **day)

    assert (response.status_code, response.json()) == (200, [])
    assert response.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(
    ("start", "end", "status"),
    [
        ("2023-07-10", "2024-01-10", 200),
        ("2023-07-09", "2024-01-10", 400),
        ("2024-01-10", "2024-01-09", 400),
        ("20240101", "20240110", 400),
        ("2024-01-01", "2024-01-32", 400),
    ],
)
def test_given_a_range_when_asking_for_deletion_jobs_then_it_may_have_six_months_at_most(
    sandbox: Sandbox, start: str, end: str, status: int
) -> None:
    response = get(sandbox, "/api/2/deletions/users", start_day=start, end_day=end)

    assert response.status_code == status


def test_given_a_request_for_deletion_jobs_when_a_second_follows_at_once_then_it_gets_429(
    sandbox: Sandbox,
) -> None:
    day: dict[str, Any] = {"start_day": "2024-01-01", "end_day": "2024-01-01"}
    seconds = iter([0.0, 0.9, 1.0])
    sandbox.seconds = lambda: next(seconds)
    statuses = [get(sandbox, "/api/2/deletions/users", **day).status_code for _ in range(3)]

    assert statuses == [200, 429, 200]


def test_given_a_smaller_plan_when_asking_for_what_it_lacks_then_the_refusal_is_not_the_keys() -> (
    None
):
    plans = frozenset(["taxonomy", "cohorts", "session_replays"])
    with Sandbox(project(), missing_plans=plans) as sandbox:
        events, cohorts = taxonomy(sandbox, "event"), get(sandbox, "/api/3/cohorts")
        replays = get(sandbox, REPLAYS)
        others = [get(sandbox, path) for path in ("/api/2/events/list", "/api/3/annotations")]

    assert events.status_code == 404
    assert events.json() == {
        "success": False,
        "errors": [{"message": "Taxonomy API access requires an Enterprise plan"}],
    }
    assert cohorts.status_code == 403
    assert "plan" in error_of(cohorts)["metadata"]["details"]
    assert (replays.status_code, replays.json()) == (
        403,
        {"error": "Session Replay is not enabled for this project"},
    )
    assert {response.status_code for response in others} == {200}


def test_given_days_when_asking_for_session_length_then_seconds_are_those_of_the_truth(
    sandbox: Sandbox,
) -> None:
    data = get(sandbox, "/api/2/sessions/average", start="20240110", end="20240111").json()["data"]

    length = sandbox.project.average_session_length(date(2024, 1, 10))
    assert data == {
        "xValues": ["2024-01-10T00:00:00", "2024-01-11T00:00:00"],
        "series": [[length, 0]],
        "seriesMeta": [{"segmentIndex": 0, "sessionIndex": 0}],
    }


def test_given_the_plain_lists_when_asking_then_they_are_the_truth_under_their_root_key(
    sandbox: Sandbox,
) -> None:
    truth = sandbox.project

    assert get(sandbox, "/api/2/events/list").json() == {"data": truth.events_list()}
    assert get(sandbox, "/api/3/annotations").json() == {"data": truth.annotations()}
    categories = get(sandbox, "/api/3/annotation-categories").json()
    assert categories == {"data": truth.annotation_categories()}
    synced = get(sandbox, "/api/3/cohorts", includeSyncInfo="true").json()
    assert synced == {"cohorts": truth.cohorts()}
    plain = get(sandbox, "/api/3/cohorts").json()["cohorts"]
    assert [row.keys() for row in plain] == [
        row.keys() - {"syncMetadata"} for row in truth.cohorts()
    ]
    classifiers = get(sandbox, "/api/2/channel-classifiers").json()
    assert classifiers == {"channelClassifiers": truth.channel_classifiers()}


def test_given_the_plain_lists_when_asking_then_their_fields_are_those_recorded(
    sandbox: Sandbox,
) -> None:
    annotations = get(sandbox, "/api/3/annotations").json()["data"]
    categories = get(sandbox, "/api/3/annotation-categories").json()["data"]
    classifiers = get(sandbox, "/api/2/channel-classifiers").json()["channelClassifiers"]

    assert annotations[0]["category"] == {"id": 45678, "category": "Releases"}
    assert annotations[3]["category"] is annotations[3]["details"] is None
    assert categories == [
        {"id": 45678, "category": "Releases"},
        {"id": 45679, "category": "Incidents"},
        {"id": 45680, "category": "Alerts"},
    ]
    assert classifiers[0] == {
        "id": "368",
        "name": "marketing",
        "displayName": "Marketing Channel",
        "description": "Where people come from",
        "csvText": "utm_source,referrer,Channel\ngoogle,,Search\n,*,Referral\n",
        "csvDefinition": {},
        "lastModified": "2026-05-10T18:09:22.275499",
    }
    assert len(classifiers) == 2
    events = get(sandbox, "/api/2/events/list").json()["data"]
    assert {event["waitroom_approved"] for event in events} == {None}
    cohorts = get(sandbox, "/api/3/cohorts").json()["cohorts"]
    for cohort in cohorts:
        assert cohort["per_app_metadata"] is cohort["cohort_definition_type"] is None
        assert cohort["cohort_output_type"] == "UNIQUES"
    assert {cohort["is_generated_content"] for cohort in cohorts} == {True, False}
    names = [cohort["definition"]["countGroup"]["name"] for cohort in cohorts]
    assert names == [*["User"] * 5, "Account"]


def test_given_requests_when_looking_back_then_each_is_recorded_with_its_cost(
    sandbox: Sandbox,
) -> None:
    get(sandbox, "/api/2/users", **DAYS)
    get(sandbox, "/api/2/users", g="country", **DAYS)
    get(sandbox, "/api/2/sessions/average", **DAYS)
    get(sandbox, "/api/2/sessions/peruser", **DAYS)
    get(sandbox, "/api/2/sessions/length", **DAYS)
    get(sandbox, "/api/2/retention", **RETENTION, **DAYS)
    get(sandbox, "/api/2/revenue/ltv", m="2", **DAYS)
    get(sandbox, "/api/2/events/segmentation", **SONGS, **DAYS)
    get(sandbox, "/api/2/events/list")
    get(sandbox, "/api/3/annotation-categories")
    taxonomy(sandbox, "event")
    get(sandbox, REPLAYS)
    get(sandbox, LOOKUP_TABLE, DATA)
    export(sandbox, "20240110T04", "20240110T04")

    dashboard = [2, 10, 8, 8, 8, 16, 2, 2, 1, 1]
    assert [request.cost for request in sandbox.requests] == [*dashboard, 1, 0, 0, 0]
    last = sandbox.requests[-1]
    assert (last.method, last.host, last.path) == ("GET", "amplitude.com", "/api/2/export")
    assert last.params == {"start": "20240110T04", "end": "20240110T04"}
    assert last.status == 200
    assert last.finished is not None
    assert last.finished >= last.started


def test_given_a_spent_budget_when_querying_then_429_has_the_recorded_body(
    sandbox: Sandbox,
) -> None:
    days: dict[str, Any] = {"start": "20230601", "end": "20230910"}

    for _ in range(2):
        assert get(sandbox, "/api/2/sessions/average", **days).status_code == 200
    refused = get(sandbox, "/api/2/sessions/average", **days)

    assert refused.status_code == 429
    assert details_of(refused) == ("Too Many Requests: Exceeded rate limit with query of cost 408")
    assert "Retry-After" not in refused.headers
    assert [request.cost for request in sandbox.requests] == [408, 408, 0]
    assert get(sandbox, "/api/2/events/list").status_code == 200


@pytest.mark.parametrize(("limit", "status"), [(408, 200), (407, 429)])
def test_given_a_query_when_it_alone_costs_more_than_may_be_in_progress_then_429(
    limit: int, status: int
) -> None:
    days: dict[str, Any] = {"start": "20230601", "end": "20230910"}
    with Sandbox(
        project(), clock=lambda: NOW, cost_limits=[(408, 60)], concurrent_cost=limit
    ) as sandbox:
        response = get(sandbox, "/api/2/sessions/length", **days)
        left = get(sandbox, "/api/2/events/list").status_code

    assert response.status_code == status
    assert sandbox.requests[0].cost == (408 if status == 200 else 0)
    # What is refused costs nothing.
    assert left == (429 if status == 200 else 200)


def test_given_costly_queries_in_progress_when_one_more_arrives_then_429_has_the_recorded_body(
    sandbox: Sandbox,
) -> None:
    days: dict[str, Any] = {"start": "20230601", "end": "20230910"}
    answer = threading.Event()
    sandbox.inject(Fault("/api/2/sessions/average", transform=held(answer.is_set)))

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(get, sandbox, "/api/2/sessions/average", **days)
        while not (sandbox.requests and sandbox.requests[0].cost):
            time.sleep(0.02)
        refused = get(sandbox, "/api/2/users", start="20230901", end="20230907")
        small = get(sandbox, "/api/2/users", start="20230901", end="20230906")
        other = taxonomy(sandbox, "category")
        answer.set()

    assert refused.status_code == 429
    assert details_of(refused) == (
        "Too Many Requests: Exceeded concurrent limit with query of cost 7"
    )
    assert "Retry-After" not in refused.headers
    assert (busy.result().status_code, small.status_code, other.status_code) == (200, 200, 200)
    assert [request.cost for request in sandbox.requests] == [408, 0, 6, 1]
    assert get(sandbox, "/api/2/sessions/average", **days).status_code == 200


def test_given_a_spent_budget_when_its_time_and_a_skew_have_passed_then_queries_run_again() -> None:
    moments = [0.0, 0.0, 0.0, 300.5, 301.0]
    asked = iter(moments)
    limits = [(2, 300.0)]
    with Sandbox(project(), seconds=lambda: next(asked), cost_limits=limits) as sandbox:
        statuses = [get(sandbox, "/api/2/events/list").status_code for _ in moments]

    assert statuses == [200, 200, 429, 429, 200]


def test_given_five_requests_in_progress_when_a_sixth_arrives_then_it_gets_429(
    sandbox: Sandbox,
) -> None:
    all_have_arrived = held(lambda: len(sandbox.requests) == 6)
    sandbox.inject(Fault("/api/*", times=5, transform=all_have_arrived))
    paths = ["/api/2/events/list", "/api/3/cohorts", "/api/3/annotations"] * 2

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda path: get(sandbox, path), paths))

    assert sorted(response.status_code for response in responses) == [200] * 5 + [429]
    [refused] = [response for response in responses if response.status_code == 429]
    assert details_of(refused) == "Too Many Requests: Exceeded concurrent limit"
    assert sandbox.peak_concurrency == 6
    assert get(sandbox, "/api/2/events/list").status_code == 200


def test_given_five_busy_clients_when_each_waits_for_its_answer_then_none_is_one_too_many(
    sandbox: Sandbox,
) -> None:
    with ThreadPoolExecutor(5) as pool:
        responses = list(pool.map(lambda _: get(sandbox, "/api/2/events/list"), range(100)))

    assert {response.status_code for response in responses} == {200}
    assert sandbox.peak_concurrency <= 5


def test_given_a_status_fault_when_its_times_are_used_up_then_the_genuine_answer_returns(
    sandbox: Sandbox,
) -> None:
    sandbox.inject(
        Fault("/api/3/cohorts", times=2, status=503, body=b"busy", headers={"Retry-After": "1"})
    )

    faulty = [get(sandbox, "/api/3/cohorts") for _ in range(2)]

    assert [(r.status_code, r.text, r.headers["Retry-After"]) for r in faulty] == [
        (503, "busy", "1")
    ] * 2
    assert get(sandbox, "/api/3/annotations").status_code == 200
    assert get(sandbox, "/api/3/cohorts").status_code == 200


def test_given_a_fault_for_some_parameters_when_others_are_sent_then_it_does_not_apply(
    sandbox: Sandbox,
) -> None:
    sandbox.inject(
        Fault("/api/2/export", times=None, status=504, when=lambda p: p["start"] != p["end"])
    )

    assert export(sandbox, "20240110T04", "20240110T05").status_code == 504
    assert export(sandbox, "20240110T04", "20240110T04").status_code == 200


@pytest.mark.parametrize("content_length", [False, True])
def test_given_a_drop_fault_when_reading_the_archive_then_the_connection_ends_in_mid_body(
    sandbox: Sandbox, content_length: bool
) -> None:
    sandbox.inject(Fault("/api/2/export", drop_after=1000, content_length=content_length))

    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        export(sandbox, "20240110T04", "20240110T05")

    assert export(sandbox, "20240110T04", "20240110T05").status_code == 200


def test_given_a_drop_fault_when_reading_a_json_body_then_the_connection_ends_in_mid_body(
    sandbox: Sandbox,
) -> None:
    sandbox.inject(Fault("/api/3/cohorts", drop_after=0))

    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        get(sandbox, "/api/3/cohorts")


def test_given_a_transform_fault_when_exporting_then_the_body_is_altered(sandbox: Sandbox) -> None:
    sandbox.inject(Fault("/api/2/export", transform=lambda body: body[: len(body) // 2]))

    response = export(sandbox, "20240110T04", "20240110T05")

    assert response.headers["Transfer-Encoding"] == "chunked"
    assert not zipfile.is_zipfile(io.BytesIO(response.content))
    whole = export(sandbox, "20240110T04", "20240110T05").content
    assert whole.startswith(response.content)


def test_given_a_body_fault_when_exporting_then_it_comes_with_200(sandbox: Sandbox) -> None:
    sandbox.inject(Fault("/api/2/export", body=b"<html>"))

    response = export(sandbox, "20240110T04", "20240110T04")

    assert (response.status_code, response.content) == (200, b"<html>")


def test_given_a_hung_request_when_the_client_leaves_then_it_no_longer_counts(
    sandbox: Sandbox,
) -> None:
    sandbox.inject(Fault("/api/2/events/list", delay=60))
    with pytest.raises(requests.exceptions.ReadTimeout):
        get(sandbox, "/api/2/events/list", timeout=0.3)
    deadline = time.monotonic() + 60
    while sandbox.requests[0].finished is None and time.monotonic() < deadline:
        time.sleep(0.02)

    assert sandbox.requests[0].finished is not None
    assert sandbox.requests[0].status is None


def test_given_a_config_when_read_then_it_names_the_region_and_the_start(sandbox: Sandbox) -> None:
    assert sandbox.config(num_workers=2) == {
        "api_key": sandbox.api_key,
        "secret_key": sandbox.secret_key,
        "data_region": "Standard Server",
        "start_date": "2024-01-10T04:00:00Z",
        "project_timezone": "UTC",
        "num_workers": 2,
    }


def test_given_a_request_in_progress_when_the_sandbox_ends_then_nothing_is_left_behind(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool:
        with Sandbox(project()) as sandbox:
            sandbox.inject(Fault("/api/2/events/list", delay=60))
            hung = pool.submit(get, sandbox, "/api/2/events/list")
            while not sandbox.requests:
                time.sleep(0.02)
            ca_file = Path(sandbox.env["REQUESTS_CA_BUNDLE"])
            assert ca_file.exists()
        assert isinstance(hung.exception(), requests.ConnectionError)

    until = time.monotonic() + 60
    while set(threading.enumerate()) - threads and time.monotonic() < until:
        time.sleep(0.05)  # a thread that has just answered ends when it is told to
    assert set(threading.enumerate()) - threads == set()
    assert not ca_file.parent.exists()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_given_a_port_in_use_when_starting_then_it_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sandbox = Sandbox(project(), port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            sandbox.__enter__()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_given_a_sandbox_of_its_own_process_when_signalled_then_it_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    printed = [process.stdout.readline() for _ in range(10)]
    assert "# EU Residency Server\n" in printed
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "\n"
    assert process.returncode == 0
    assert os.listdir(tmp_path) == []


def event(name: str, **more: Any) -> str:
    return json.dumps({"event_type": name, **more})


SONG, SIGN_UP, CHECKOUT = "Song Played 🎧", "Signed Up", "Checkout Completed"
STEPS = [("e", event(name)) for name in ("Page Viewed", SONG, CHECKOUT)]
WEEK = [("start", "20240101"), ("end", "20240107")]
GERMANS = json.dumps([{"prop": "country", "op": "is", "values": ["Germany"]}])
NO_GERMANS = json.dumps([{"prop": "country", "op": "is not", "values": ["Germany"]}])
SEGMENTATION, FUNNELS = "/api/2/events/segmentation", "/api/2/funnels"


@pytest.fixture(scope="module")
def asked() -> Iterator[Sandbox]:
    """As `old`, for tests that change nothing in it."""
    with Sandbox(Project(), clock=lambda: NOW, cost_limits=()) as running:
        yield running


class TestReports:
    """What a project holds of its days up to 10 January 2024."""

    @staticmethod
    def ask(sandbox: Sandbox, path: str, *params: tuple[str, str]) -> requests.Response:
        return requests.get(
            STANDARD + path,
            params=[*params],
            auth=(sandbox.api_key, sandbox.secret_key),
            proxies={"https": sandbox.env["HTTPS_PROXY"]},
            verify=sandbox.env["REQUESTS_CA_BUNDLE"],
            timeout=10,
        )

    def segmented(self, sandbox: Sandbox, *params: tuple[str, str]) -> dict[str, Any]:
        response = self.ask(sandbox, SEGMENTATION, *WEEK, *params)
        data: dict[str, Any] = response.json()["data"]
        return data

    def funnels(self, sandbox: Sandbox, *params: tuple[str, str]) -> list[dict[str, Any]]:
        response = self.ask(sandbox, FUNNELS, *(params or (*WEEK, *STEPS)))
        data: list[dict[str, Any]] = response.json()["data"]
        return data

    def test_given_groups_when_segmenting_then_they_are_named_with_their_event_and_add_up(
        self, asked: Sandbox
    ) -> None:
        params = [("e", event(SONG)), ("m", "totals"), ("g", "platform")]
        data = self.segmented(asked, *params)

        assert sorted(data["seriesLabels"]) == ["Android", "Web", "iOS"]
        assert "seriesMeta" not in data
        wholes = [[cell["value"] for cell in cells] for cells in data["seriesCollapsed"]]
        assert wholes == [[sum(values)] for values in data["series"]]
        assert wholes == sorted(wholes, reverse=True)
        days = [date.fromisoformat(day) for day in data["xValues"]]
        assert [sum(column) for column in zip(*data["series"], strict=True)] == [
            asked.project.count_events("totals", [day], SONG) for day in days
        ]
        assert [
            (row["group"], row["date"], row["value"])
            for row in asked.segmentation([*WEEK, *params])
        ] == [
            (label, day, value)
            for label, values in zip(data["seriesLabels"], data["series"], strict=True)
            for day, value in zip(data["xValues"], values, strict=True)
        ]

    def test_given_two_events_when_segmenting_then_their_index_stands_in_the_meta(
        self, asked: Sandbox
    ) -> None:
        data = self.segmented(asked, ("e", event(SONG)), ("e2", event(SIGN_UP)), ("m", "totals"))

        assert data["seriesLabels"] == [0, 0]
        assert data["seriesMeta"] == [{"segmentIndex": 0, "eventIndex": n} for n in (0, 1)]
        days = [date.fromisoformat(day) for day in data["xValues"]]
        assert data["series"] == [
            [asked.project.count_events("totals", [day], name) for day in days]
            for name in (SONG, SIGN_UP)
        ]
        groups = self.segmented(
            asked, ("e", event(SONG)), ("e2", event(SIGN_UP)), ("g", "platform"), ("m", "totals")
        )
        assert sorted(groups["seriesLabels"]) == [
            [number, platform] for number in (0, 1) for platform in ("Android", "Web", "iOS")
        ]
        assert [meta["eventIndex"] for meta in groups["seriesMeta"]] == [0, 0, 0, 1, 1, 1]

    def test_given_a_quiet_event_when_segmenting_then_there_is_no_series_unless_another_has_one(
        self,
    ) -> None:
        quiet = frozenset((name, date(2024, 1, 1)) for name in (SIGN_UP, CHECKOUT))
        nothing = {"xValues": [f"2024-01-0{n}" for n in range(1, 8)], "series": []}
        with Sandbox(Project(quiet_weeks=quiet), clock=lambda: NOW) as sandbox:
            for group in ([], [("g", "country")]):
                data = self.segmented(sandbox, ("e", event(SIGN_UP)), *group)
                assert data == {**nothing, "seriesLabels": []}
            both = [("e", event(SIGN_UP)), ("e2", event(CHECKOUT))]
            assert self.segmented(sandbox, *both) == {**nothing, "seriesLabels": []}
            data = self.segmented(sandbox, ("e", event(SIGN_UP)), ("e2", event(SONG)))
            assert data["series"][0] == [0] * 7
            assert min(data["series"][1]) > 0
            assert data["seriesMeta"] == [{"segmentIndex": 0, "eventIndex": n} for n in (0, 1)]

    def test_given_two_properties_when_segmenting_then_groups_are_their_combinations(
        self, asked: Sandbox
    ) -> None:
        country, plan = ({"type": "user", "value": name} for name in ("country", "gp:plan"))
        by_both, by_event, by_either = (
            self.segmented(asked, *params, ("m", "totals"))
            for params in (
                [("e", event(SONG)), ("g", "country"), ("g2", "gp:plan")],
                [("e", event(SONG, group_by=[country, plan]))],
                [("e", event(SONG, group_by=[country])), ("g", "gp:plan")],
            )
        )

        assert len(by_both["series"]) == 7 * 4
        assert ["Germany", "pro"] in by_both["seriesLabels"]
        assert by_event["seriesLabels"] == [
            [0, "; ".join(labels)] for labels in by_both["seriesLabels"]
        ]
        assert by_event["series"] == by_both["series"]
        assert by_either == by_event
        by_one = self.segmented(asked, ("e", event(SONG, group_by=[country])))
        assert [0, "Germany"] in by_one["seriesLabels"]

    def test_given_more_groups_than_the_limit_when_segmenting_then_the_largest_are_left(
        self, asked: Sandbox
    ) -> None:
        params = [("e", event(SONG)), ("g", "country")]
        everything = self.segmented(asked, *params)
        data = self.segmented(asked, *params, ("limit", "2"))

        assert data["seriesLabels"] == everything["seriesLabels"][:2]
        assert data["seriesLabels"][0] == "United States"

    def test_given_segments_when_segmenting_then_each_holds_what_meets_its_conditions(
        self, asked: Sandbox
    ) -> None:
        params = [("e", event(SONG)), ("m", "totals")]
        everybody = self.segmented(asked, *params)["series"][0]
        data = self.segmented(asked, *params, ("s", GERMANS), ("s", NO_GERMANS))

        assert data["seriesLabels"] == [0, 1]
        assert min(data["series"][0]) > 0
        for germans, others, all_of_them in zip(*data["series"], everybody, strict=True):
            assert abs(germans + others - all_of_them) <= 1
        grouped = self.segmented(asked, *params, ("g", "country"), ("s", GERMANS))
        assert grouped["seriesLabels"] == ["Germany"]
        assert grouped["series"] == data["series"][:1]

    def test_given_a_filter_when_segmenting_then_only_its_events_count(
        self, asked: Sandbox
    ) -> None:
        def count(operator: str) -> int:
            filters = [
                {
                    "subprop_type": "event",
                    "subprop_key": "is_offline",
                    "subprop_op": operator,
                    "subprop_value": ["true"],
                }
            ]
            data = self.segmented(asked, ("e", event(SONG, filters=filters)), ("m", "totals"))
            return sum(data["series"][0])

        assert 0 < count("is") < count("is not")

    def test_given_cohorts_and_behaviour_when_segmenting_then_fewer_are_left(
        self, asked: Sandbox
    ) -> None:
        conditions = [
            {"prop": "userdata_cohort", "op": "is", "values": ["k3m9x1az"]},
            {"type": "event", "event_type": SIGN_UP, "op": ">=", "value": 1, "filters": [],
             "time_type": "allTime", "time_value": 30},
        ]  # fmt: skip
        counts = [
            sum(self.segmented(asked, ("e", event(SONG)), ("s", json.dumps(part)))["series"][0])
            for part in (conditions, conditions[:1], [])
        ]
        assert 0 < counts[0] < counts[1] < counts[2]

    def test_given_each_metric_when_segmenting_then_they_are_of_the_same_truth(
        self, asked: Sandbox
    ) -> None:
        found = {
            metric: self.segmented(asked, ("e", event(SIGN_UP)), ("m", metric))["series"][0]
            for metric in ("totals", "uniques", "average", "pct_dau")
        }
        active = [sum(asked.count_users("active", date(2024, 1, n)).values()) for n in range(1, 8)]

        assert found["average"] == [
            total / users for total, users in zip(found["totals"], found["uniques"], strict=True)
        ]
        assert found["pct_dau"] == [
            100 * users / all_of_them
            for users, all_of_them in zip(found["uniques"], active, strict=True)
        ]

    def test_given_weeks_when_segmenting_then_who_comes_again_counts_once(
        self, asked: Sandbox
    ) -> None:
        by_day = self.segmented(asked, ("e", event(SONG)))
        data = self.segmented(asked, ("e", event(SONG)), ("i", "7"))

        assert data["xValues"] == ["2024-01-01"]
        assert max(by_day["series"][0]) < data["series"][0][0] < sum(by_day["series"][0])
        assert data["series"][0] == [cell["value"] for cell in by_day["seriesCollapsed"][0]]

    def test_given_a_funnel_when_asked_then_it_has_a_row_per_day_and_a_column_per_step(
        self, asked: Sandbox
    ) -> None:
        body = self.ask(asked, FUNNELS, *WEEK, *STEPS).json()
        (data,) = body["data"]

        assert body["numSeries"] == 1
        assert {*data} == {
            *("events", "cumulativeRaw", "cumulative", "stepByStep", "groupValue", "meta"),
            *("dayFunnels", "dayMedianTransTimes", "dayAvgTransTimes", "propsum"),
            *("medianTransTimes", "avgTransTimes"),
        }
        assert data["propsum"] == []
        assert data["events"] == ["Page Viewed", SONG, CHECKOUT]
        assert (data["groupValue"], data["meta"]) == ("", {"segmentIndex": 0})
        for name in ("dayFunnels", "dayMedianTransTimes", "dayAvgTransTimes"):
            assert {*data[name]} == {"xValues", "formattedXValues", "series"}
            assert data[name]["xValues"][::6] == ["2024-01-01", "2024-01-07"]
            assert data[name]["formattedXValues"][::6] == ["Jan 01", "Jan 07"]
            assert [len(row) for row in data[name]["series"]] == [3] * 7
        users = data["dayFunnels"]["series"]
        assert [row[0] for row in users] == [
            asked.project.count_events("uniques", [date(2024, 1, n)], "Page Viewed")
            for n in range(1, 8)
        ]
        assert all(0 < third < second < first for first, second, third in users)
        assert data["cumulativeRaw"] == [sum(column) for column in zip(*users, strict=True)]
        assert data["cumulative"][0] == data["stepByStep"][0] == 1
        assert data["cumulative"][2] < data["stepByStep"][2]
        for first, second, third in data["dayMedianTransTimes"]["series"]:
            assert first == 0
            assert 0 < second <= 2_592_000_000
            assert 0 < third <= 2_592_000_000

    def test_given_a_funnel_when_its_window_goes_on_then_later_steps_grow_until_it_is_over(
        self,
    ) -> None:
        now = [NOW]
        params = [*STEPS, ("cs", "172800"), ("start", "20240109"), ("end", "20240111")]
        with Sandbox(Project(), clock=lambda: now[0], cost_limits=()) as sandbox:
            found, records = [], []
            for n in range(5):
                now[0] = NOW + timedelta(days=n)
                found.append(self.funnels(sandbox, *params)[0]["dayFunnels"])
                records.append([r for r in sandbox.funnel(params) if r["step"] == 1])

        first = [days["series"][0] for days in found]
        assert {users for users, *_ in first} == {first[0][0]}
        assert first[0][1] < first[1][1] == first[2][1] == first[4][1]
        second = [days["series"][1] for days in found]
        assert second[0][1] < second[1][1] < second[2][1] == second[3][1]
        assert [[record["is_complete"] for record in days] for days in records] == [
            [False, False, False],
            [False, False, False],
            [True, False, False],
            [True, True, False],
            [True, True, True],
        ]
        assert found[0]["series"][2] == [0, 0, 0]

    def test_given_the_modes_of_a_funnel_when_asked_then_the_stricter_has_fewer_users(
        self, asked: Sandbox
    ) -> None:
        def last(*params: tuple[str, str]) -> int:
            count: int = self.funnels(asked, *WEEK, *STEPS, *params)[0]["cumulativeRaw"][2]
            return count

        modes = [last(("mode", mode)) for mode in ("sequential", "ordered", "unordered")]
        assert 0 < modes[0] < modes[1] < modes[2]
        assert 0 < last(("n", "new")) < last(("n", "active")) == last() == modes[1]

    def test_given_groups_and_segments_of_a_funnel_when_asked_then_each_is_an_element(
        self, asked: Sandbox
    ) -> None:
        everybody = self.funnels(asked)[0]["dayFunnels"]["series"]
        groups = self.funnels(asked, *WEEK, *STEPS, ("g", "platform"))
        grouping = event("Page Viewed", group_by=[{"type": "user", "value": "platform"}])
        by_event = self.funnels(asked, *WEEK, ("e", grouping), *STEPS[1:])
        segments = self.funnels(asked, *WEEK, *STEPS, ("s", GERMANS), ("s", NO_GERMANS))

        assert sorted(group["groupValue"] for group in groups) == ["Android", "Web", "iOS"]
        assert by_event == groups
        assert [sum(group["dayFunnels"]["series"][0][0] for group in groups)] == everybody[0][:1]
        assert self.funnels(asked, *WEEK, *STEPS, ("g", "platform"), ("limit", "1")) == groups[:1]
        assert groups[0]["cumulativeRaw"][0] == max(g["cumulativeRaw"][0] for g in groups)
        assert [part["meta"]["segmentIndex"] for part in segments] == [0, 1]

    @pytest.mark.parametrize("group", [[], [("g", "gp:plan")]], ids=["one", "by-plan"])
    def test_given_a_funnel_when_asked_then_it_holds_the_records_of_the_truth(
        self, asked: Sandbox, group: list[tuple[str, str]]
    ) -> None:
        params = [("start", "20231230"), ("end", "20240110"), *STEPS, *group]

        body = self.ask(asked, FUNNELS, *params).json()

        records = asked.funnel(params)
        assert [(r["group"], r["date"], r["step"], r["users"]) for r in records] == [
            (data["groupValue"] or "(all)", day, step, users)
            for data in body["data"]
            for day, row in zip(
                data["dayFunnels"]["xValues"], data["dayFunnels"]["series"], strict=True
            )
            for step, users in enumerate(row, start=1)
        ]
        assert body["numSeries"] == (4 if group else 1)
        assert len(records) == 12 * 3 * body["numSeries"]
        second = records[1]
        [first_group, *_] = body["data"]
        milliseconds = first_group["dayMedianTransTimes"]["series"][0][1]
        assert second["median_seconds"] == milliseconds / 1000
        assert second["conversion"] == second["users"] / records[0]["users"]

    @pytest.mark.parametrize("group", [[], [("g", "gp:plan")]], ids=["one", "by-plan"])
    def test_given_days_without_users_when_asking_for_a_funnel_then_it_has_no_elements(
        self, sandbox: Sandbox, group: list[tuple[str, str]]
    ) -> None:
        body = self.ask(sandbox, FUNNELS, *WEEK, *STEPS, *group).json()

        assert (body["data"], body["numSeries"]) == ([], 0)
        assert sandbox.funnel([*WEEK, *STEPS, *group]) == []

    @pytest.mark.parametrize(
        ("params", "counted"),
        [
            ({"rm": "rolling"}, "rolling"),
            ({"rm": "bracket", "rb": "[[0,1],[1,4],[4,30]]"}, "bracket"),
        ],
    )
    def test_given_another_mode_of_retention_when_asked_then_cells_are_of_its_days(
        self, asked: Sandbox, params: dict[str, str], counted: str
    ) -> None:
        cohort = date(2024, 1, 5)
        span = {"start": "20240105", "end": "20240105"}
        query = {"se": event(SONG), "re": event(CHECKOUT), **span}
        plain, cells = (
            self.ask(asked, "/api/2/retention", *sent.items()).json()["data"]["series"][0][
                "values"
            ]["Jan 05, 2024"]
            for sent in (query, {**query, **params})
        )

        users = asked.project.retained_users(cohort, SONG, CHECKOUT)
        assert users[0] == asked.project.count_events("uniques", [cohort], SONG)
        assert [each["count"] for each in plain] == users[:7]
        came = users[1:7]
        if counted == "rolling":
            assert [each["count"] for each in cells[1:]] == [max(came[n:]) for n in range(6)]
            assert all(each["incomplete"] for each in cells[1:])
        else:
            assert [each["count"] for each in cells[1:]] == [came[0], max(came[1:4]), max(came[4:])]
            assert [each["incomplete"] for each in cells] == [False, False, False, True]

    @staticmethod
    def rows_of(text: str, labels: int) -> list[tuple[list[str], dict[str, str]]]:
        """Below the title: each row's labels, those that are blank taken from above, and cells."""
        _, _, _, _, headings, *rows = csv.reader(io.StringIO(text, newline=""))
        dates, found = [heading.removeprefix("\t") for heading in headings[labels:]], []
        above = [""] * labels
        for row in rows:
            above = [own.removeprefix("\t") or old for own, old in zip(row, above, strict=False)]
            found.append((above, dict(zip(dates, row[labels:], strict=True))))
        return found

    @pytest.mark.parametrize(
        ("chart", "labels", "count", "cost"),
        [
            ("s0ngs7wk", 1, 15, 140),
            ("x8k2m1qp", 1, 28, 28),
            ("av3r4ge5", 2, 840, 270),
            ("fu9n3lwk", 2, 30, 336),
        ],
    )
    def test_given_a_saved_chart_when_asked_then_it_holds_the_records_of_the_truth(
        self, asked: Sandbox, chart: str, labels: int, count: int, cost: int
    ) -> None:
        text = self.ask(asked, f"/api/3/chart/{chart}/csv").json()["data"]

        records = asked.chart(chart)
        assert len(records) == count
        assert asked.requests[-1].cost == cost
        assert {re.sub(r"\d", "0", record["date"]) for record in records} == {"0000-00-00T00:00:00"}
        assert [
            (
                (" | ".join(names)).removeprefix("[Previous] "),
                names[0].startswith("[Previous] "),
                f"{day[:10]}T00:00:00",
                float(cell.strip("%")) if cell else None,
                "%" in cell,
            )
            for names, cells in self.rows_of(text, labels)
            for day, cell in cells.items()
        ] == [
            (r["series"], r["is_previous"], r["date"], r["value"], r["is_percentage"])
            for r in records
        ]
        assert records[0]["series"] == " | ".join(records[0]["labels"].values())

    def test_given_a_saved_chart_when_asked_then_the_csv_has_every_oddity(
        self, asked: Sandbox
    ) -> None:
        lines = self.ask(asked, "/api/3/chart/x8k2m1qp/csv").json()["data"].split("\r\n")

        assert lines[:4] == [
            '"\tShare of users who pay, ""checkout"""',
            "",
            '"\tpct_dau"',
            "",
        ]
        assert lines[4].startswith('"\tSegment","\t2023-12-28","\t2023-12-29",')
        assert lines[4].endswith(',"\t2024-01-10"')
        assert lines[5].startswith('"\tAll Users","')
        assert lines[5].count('%"') == 14
        assert lines[6].startswith('"\t[Previous] All Users","')
        assert lines[7:] == [""]
        (days,) = {
            record["is_previous"]: record for record in asked.chart("x8k2m1qp")[:14]
        }.values()
        truth = asked.project.count_events("uniques", [NOW.date()], CHECKOUT)
        active = sum(asked.count_users("active", NOW.date()).values())
        assert days["value"] == round(100 * truth / active, 1)

    def test_given_weeks_of_segmentation_when_the_chart_is_asked_for_then_headings_have_a_time(
        self, asked: Sandbox
    ) -> None:
        lines = self.ask(asked, "/api/3/chart/s0ngs7wk/csv").json()["data"].split("\r\n")

        assert lines[4].split(",")[:2] == ['"\tPlatform"', '"\t2023-12-11T00:00:00"']

    def test_given_two_group_bys_when_the_chart_is_asked_for_then_a_label_as_above_is_blank(
        self, asked: Sandbox
    ) -> None:
        text = self.ask(asked, "/api/3/chart/av3r4ge5/csv").json()["data"]
        _, _, _, _, headings, *rows = csv.reader(io.StringIO(text, newline=""))

        assert headings[:2] == ["\tcountry", "\tgp:plan"]
        assert [row[:2] for row in rows[:5]] == [
            ["\t(none)", "\t(none)"],
            ["", "\tfamily"],
            ["", "\tfree"],
            ["", "\tpro"],
            ["\tBrazil", "\t(none)"],
        ]
        assert asked.chart("av3r4ge5")[30]["labels"] == {"country": "(none)", "gp:plan": "family"}

    def test_given_a_funnel_over_weeks_when_the_chart_is_asked_for_then_it_has_two_labels(
        self, asked: Sandbox
    ) -> None:
        lines = self.ask(asked, "/api/3/chart/fu9n3lwk/csv").json()["data"].split("\r\n")

        assert lines[4] == (
            '"\tSegment","\tSteps","\t2023-12-11","\t2023-12-18","\t2023-12-25","\t2024-01-01",'
            '"\t2024-01-08"'
        )
        assert [line.split(",")[:2] for line in lines[5:-1]] == [
            [f'"\t{before}All Users"', f'"\t{step}"']
            for step in ("Entire Funnel", SONG, CHECKOUT)
            for before in ("", "[Previous] ")
        ]
        cells = [cell for line in lines[5:-1] for cell in line.split(",")[2:]]
        assert all(re.fullmatch(r'"0\.\d{4}"', cell) for cell in cells)
        whole, first, second = (
            [r["value"] for r in asked.chart("fu9n3lwk") if r["series"] == f"All Users | {step}"]
            for step in ("Entire Funnel", SONG, CHECKOUT)
        )
        assert whole == pytest.approx([a * b for a, b in zip(first, second, strict=True)], abs=1e-4)

    def test_given_averages_of_nobody_when_the_chart_is_asked_for_then_cells_are_empty(
        self, asked: Sandbox
    ) -> None:
        values = [record["value"] for record in asked.chart("av3r4ge5")]

        assert None in values
        assert all(value is None or value >= 1 for value in values)

    def test_given_an_unknown_chart_when_asked_then_404(self, asked: Sandbox) -> None:
        unknown = self.ask(asked, "/api/3/chart/unknown1/csv")

        assert unknown.status_code == 404
        assert details_of(unknown) == "Not Found"

    @pytest.mark.parametrize(
        ("path", "params", "cost"),
        [
            (SEGMENTATION, [("e", event(SONG))], 7),
            (SEGMENTATION, [("e", event(SONG)), ("e2", event(SIGN_UP))], 14),
            (SEGMENTATION, [("e", event(SONG)), ("g", "country")], 7 * 5),
            (SEGMENTATION, [("e", event(SONG)), ("g", "country"), ("g2", "platform")], 7 * 9),
            (SEGMENTATION, [("e", event(SONG)), ("s", GERMANS)], 7 * 2),
            (SEGMENTATION, [("e", event(SONG)), ("s", GERMANS), ("s", "[]")], 7 * 3),
            (SEGMENTATION, [("e", event(SONG)), ("s", GERMANS), ("g", "country")], 7 * 6),
            (
                SEGMENTATION,
                [("e", event(SONG, group_by=[{"type": "user", "value": "country"}])),
                 ("e2", event(SIGN_UP)), ("s", GERMANS)],
                7 * 2 * (5 + 1),
            ),
            (FUNNELS, STEPS, 7 * 6),
            (FUNNELS, [*STEPS, ("g", "country")], 7 * 5 * 6),
            (
                FUNNELS,
                [("e", event(SONG, group_by=[{"type": "user", "value": "country"}])), *STEPS[1:],
                 ("s", GERMANS)],
                7 * 2 * (6 + 4),
            ),
            ("/api/2/retention", [("se", event(SONG)), ("re", event("_active")), ("s", GERMANS)],
             7 * 2 * 8),
        ],
    )  # fmt: skip
    def test_given_a_query_when_asked_then_it_costs_what_the_documentation_says(
        self, asked: Sandbox, path: str, params: list[tuple[str, str]], cost: int
    ) -> None:
        assert self.ask(asked, path, *WEEK, *params).status_code == 200

        request = asked.requests[-1]
        assert request.cost == cost
        assert request.params.pairs == [*WEEK, *params]
        assert request.params["end"] == "20240107"

    @pytest.mark.parametrize(
        ("path", "params", "details"),
        [
            (SEGMENTATION, [], "Invalid parameter e"),
            (SEGMENTATION, [("e", "[]")], "Invalid parameter e"),
            (SEGMENTATION, [("e", event(SONG)), ("e2", "x")], "Invalid parameter e2"),
            (SEGMENTATION, [("e", event(SONG, colour="red"))], "Invalid parameter e"),
            (SEGMENTATION, [("e", event(SONG, filters=[{}]))], "Invalid parameter e"),
            (SEGMENTATION, [("e", event(SONG)), ("m", "formula")], "Invalid parameter m"),
            (SEGMENTATION, [("e", event(SONG)), ("g2", "country")], "Invalid parameter g2"),
            (SEGMENTATION, [("e", event(SONG)), ("g", "shoe")], "Invalid user property shoe"),
            (SEGMENTATION, [("e", event(SONG)), ("limit", "10001")], "Invalid parameter limit"),
            (SEGMENTATION, [("e", event(SONG)), ("s", "{}x")], "Invalid parameter s"),
            (SEGMENTATION, [("e", event(SONG)), ("s", '[{"prop":"country"}]')],
             "Invalid parameter s"),
            (SEGMENTATION, [("e", event(SONG)), ("s", GERMANS.replace('"is"', '"="'))],
             "Invalid parameter s"),
            (
                SEGMENTATION,
                [("e", event(SONG)), ("g", "country"), ("s", GERMANS), ("s", GERMANS)],
                "Group by is only possible with a single segment",
            ),
            (
                SEGMENTATION,
                [("e", event(SONG, group_by=[{"value": "country"}] * 3))],
                "An event can be grouped by two properties at most",
            ),
            (FUNNELS, STEPS[:1], "A funnel must have at least two steps"),
            (FUNNELS, [*STEPS, ("e", event("Fax Sent"))], "Invalid event Fax Sent"),
            (FUNNELS, [*STEPS, ("i", "7")], "Invalid parameter i"),
            (FUNNELS, [*STEPS, ("g2", "country")], "Invalid parameter g2"),
            (FUNNELS, [*STEPS, ("cs", "-1")], "Invalid parameter cs"),
            ("/api/2/retention", [*RETENTION.items(), ("rm", "bracket")], "Invalid parameter rb"),
            (
                "/api/2/retention",
                [*RETENTION.items(), ("rm", "bracket"), ("rb", "[[5,5]]")],
                "Invalid parameter rb",
            ),
            ("/api/3/chart/x8k2m1qp/csv", [], "Invalid parameter start"),
        ],
    )  # fmt: skip
    def test_given_parameters_that_make_no_report_when_asked_then_400_names_them(
        self, asked: Sandbox, path: str, params: list[tuple[str, str]], details: str
    ) -> None:
        refused = self.ask(asked, path, *WEEK, *params)

        assert refused.status_code == 400
        assert error_of(refused)["metadata"] == {"details": details}


class TestCohortJobs:
    REQUEST, STATUS = "/api/5/cohorts/request", "/api/5/cohorts/request-status"
    SMALL, LARGE = "p7q2w8rt", "z5y4n6bv"

    def made(self, sandbox: Sandbox, cohort_id: str, **params: Any) -> str:
        answer = get(sandbox, f"{self.REQUEST}/{cohort_id}", **params)
        assert answer.status_code == 202
        assert answer.json()["cohort_id"] == cohort_id
        return str(answer.json()["request_id"])

    def stored(self, sandbox: Sandbox, address: str, **options: Any) -> requests.Response:
        return requests.get(
            address,
            proxies={"https": sandbox.env["HTTPS_PROXY"]},
            verify=sandbox.env["REQUESTS_CA_BUNDLE"],
            timeout=10,
            **options,
        )

    def test_given_a_job_when_its_time_has_passed_then_its_file_holds_the_members(self) -> None:
        seconds = [0.0]
        with Sandbox(
            project(), clock=lambda: NOW, seconds=lambda: seconds[0], cohort_job_seconds=30.0
        ) as sandbox:
            job = self.made(sandbox, self.SMALL, props="1", propKeys="plan")
            early = get(sandbox, f"{self.STATUS}/{job}")
            too_early = get(sandbox, f"{self.REQUEST}/{job}/file")
            seconds[0] = 30.0
            late = get(sandbox, f"{self.STATUS}/{job}")
            file = get(sandbox, f"{self.REQUEST}/{job}/file")
        assert (early.status_code, early.json()["async_status"]) == (202, "JOB INPROGRESS")
        assert too_early.status_code == 400
        assert (late.status_code, late.json()["async_status"]) == (200, "JOB COMPLETED")
        rows = list(csv.reader(io.StringIO(file.text, newline="")))
        [computed] = [c["lastComputed"] for c in project().cohorts() if c["id"] == self.SMALL]
        members = list(project().cohort_members(self.SMALL, computed, ["plan"]))
        assert len(members) == 42
        assert rows[0] == ["amplitude_id", "user_id", "plan"]
        assert [(row[0], row[1].strip('"'), row[2]) for row in rows[1:]] == [
            (str(m["amplitude_id"]), m["user_id"] or "", m["properties"]["plan"] or "")
            for m in members
        ]
        assert any(row[1].startswith('"') for row in rows[1:])
        assert file.headers["Content-Encoding"] == "gzip"
        assert file.text.splitlines()[0] == '"amplitude_id","user_id","plan"'
        assert all(re.fullmatch(r'("[^"]*",?|"{3}[^"]+"{3},)+', n) for n in file.text.splitlines())

    def test_given_a_cohort_of_groups_when_downloaded_then_texts_have_a_tab_and_no_user_ids(
        self, sandbox: Sandbox
    ) -> None:
        [cohort] = [c for c in sandbox.cohorts() if c["definition"]["countGroup"]["name"] != "User"]
        job = self.made(sandbox, cohort["id"], props="1", propKeys="plan")
        file = get(sandbox, f"{self.REQUEST}/{job}/file")
        headings, *rows = csv.reader(io.StringIO(file.text, newline=""))
        assert headings == ["\tamplitude_id", "\tgroup_value", "\tplan"]
        assert len(rows) == cohort["size"]
        assert {re.sub(r"\d+", "0", row[1]) for row in rows} == {"\tAcme 0"}
        assert {row[2] for row in rows} == {"\tfree", "\tpro", "\tfamily", "\t"}
        assert all(row[0].isdigit() for row in rows)

    def test_given_a_client_that_takes_no_gzip_when_it_downloads_then_it_is_sent_all_the_same(
        self, sandbox: Sandbox
    ) -> None:
        job = self.made(sandbox, self.LARGE)
        address = get(sandbox, f"{self.REQUEST}/{job}/file").url
        plain = self.stored(sandbox, address, headers={"Accept-Encoding": "identity"}, stream=True)
        assert plain.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(plain.raw.read()).count(b"\n") == 2049

    def test_given_a_large_file_when_asked_for_then_a_storage_sends_it_to_who_shows_no_keys(
        self,
    ) -> None:
        clock = [NOW]
        with Sandbox(project(), clock=lambda: clock[0]) as sandbox:
            job = self.made(sandbox, self.LARGE, props="0")
            path = f"{self.REQUEST}/{job}/file"
            whole = get(sandbox, path)  # redirects are followed without the keys
            address = whole.url
            with_keys = self.stored(sandbox, address, auth=("a", "b"))
            forged = self.stored(sandbox, address[:-1] + "_")
            clock[0] = NOW + timedelta(seconds=61)
            expired = self.stored(sandbox, address)
            again = get(sandbox, path)
            clock[0] = NOW + timedelta(days=7, seconds=1)
            gone = get(sandbox, path)
            elsewhere = get(sandbox, "/exports/x.csv")
        assert address.startswith("https://amplitude-cohort-exports.s3.us-west-2.amazonaws.com/")
        assert whole.status_code == again.status_code == 200
        assert whole.history[0].status_code == 302
        assert whole.headers["Content-Encoding"] == "gzip"
        assert int(whole.headers["Content-Length"]) < len(whole.content)
        assert whole.text.count("\n") == 2049
        assert again.text == whole.text
        assert (with_keys.status_code, forged.status_code) == (400, 403)
        assert (expired.status_code, gone.status_code, elsewhere.status_code) == (403, 400, 404)

    def test_given_four_jobs_in_a_minute_when_a_fifth_is_made_then_429_and_it_is_not_counted(
        self, sandbox: Sandbox
    ) -> None:
        for _ in range(4):
            self.made(sandbox, self.SMALL)
        fifth = get(sandbox, f"{self.REQUEST}/{self.SMALL}")
        usage = get(sandbox, "/api/3/cohorts/usage").json()
        assert fifth.status_code == 429
        assert usage == {
            "rest_download": {"limit": 500, "usage": 4, "resets_at": "2024-02-01T00:00:00Z"}
        }

    def test_given_a_spent_month_when_a_job_is_made_then_429_until_the_next(self) -> None:
        clock = [NOW]
        with Sandbox(project(), clock=lambda: clock[0], cohort_quota=1) as sandbox:
            self.made(sandbox, self.SMALL)
            refused = get(sandbox, f"{self.REQUEST}/{self.SMALL}")
            clock[0] = NOW + timedelta(days=31)
            self.made(sandbox, self.SMALL)
        assert refused.status_code == 429
        assert "per month" in error_of(refused)["metadata"]["details"]

    @pytest.mark.parametrize("path", ["request/nobody", "request-status/nobody", "request/x/file"])
    def test_given_an_unknown_id_when_asked_then_400(self, sandbox: Sandbox, path: str) -> None:
        assert get(sandbox, f"/api/5/cohorts/{path}").status_code == 400

    def test_given_a_cohort_computed_anew_when_listed_then_it_says_so_and_members_move(
        self, sandbox: Sandbox
    ) -> None:
        sandbox.compute_cohort(self.SMALL, 1_700_000_000)
        listed = {
            c["id"]: c["lastComputed"] for c in get(sandbox, "/api/3/cohorts").json()["cohorts"]
        }
        assert listed[self.SMALL] == 1_700_000_000
        before, after = (
            {m["amplitude_id"] for m in sandbox.project.cohort_members(self.SMALL, computed)}
            for computed in (1_700_000_000, 1_700_003_600)
        )
        assert (len(before - after), len(after - before)) == (1, 1)


class TestExperiments:
    HOST, EU_HOST = "https://experiment.amplitude.com", "https://experiment.eu.amplitude.com"
    LISTS = ("experiments", "flags", "versions", "deployments", "mutexes", "holdouts")

    def ask(
        self, sandbox: Sandbox, name: str, host: str = HOST, secret: str = "", **params: Any
    ) -> requests.Response:
        return requests.get(
            f"{host}/api/1/{name}",
            params=params,
            headers={"Authorization": f"Bearer {secret or sandbox.management_key}"},
            proxies={"https": sandbox.env["HTTPS_PROXY"]},
            verify=sandbox.env["REQUESTS_CA_BUNDLE"],
            timeout=10,
        )

    def all_of(self, sandbox: Sandbox, name: str, limit: int = 1000, **params: Any) -> list[Any]:
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            body = self.ask(sandbox, name, limit=limit, **cursor, **params).json()
            found += body[name]
            if body["nextCursor"] is None:
                return found
            assert isinstance(body["nextCursor"], str)
            cursor = {"cursor": body["nextCursor"]}

    def test_given_the_management_key_when_asked_then_each_list_is_the_truth_in_any_pages(
        self, sandbox: Sandbox
    ) -> None:
        for name in set(self.LISTS) - {"versions"}:
            truth = getattr(experiments, name)(sandbox.project, NOW)
            archived: Any = {"includeArchived": "true"} if name in ("experiments", "flags") else {}
            assert self.all_of(sandbox, name, **archived) == truth
            assert self.all_of(sandbox, name, limit=1, **archived) == truth
            assert {each["projectId"] for each in truth} == {"187520", "187521"}
            assert {type(each["id"]) for each in truth} == {str}

    def test_given_flags_and_experiments_when_asked_then_they_have_what_was_recorded(
        self, sandbox: Sandbox
    ) -> None:
        archived: Any = {"includeArchived": "true"}
        found = [
            each
            for name in ("experiments", "flags")
            for each in self.all_of(sandbox, name, **archived)
        ]
        history = {"createdAt", "createdBy", "lastModifiedAt", "lastModifiedBy"}
        without = [each for each in found if not history & each.keys()]
        assert ["state" in each for each in without] == [True, False]
        assert all(history <= each.keys() for each in found if each not in without)
        assert {each["createdBy"] for each in found if each not in without} == {"demo@example.com"}
        assert sum(each["rolloutWeights"] == {} for each in found) == 1
        assert sum("\n" in each["description"] for each in found) == 1
        started = {each["startDate"] for each in found if "state" in each}
        assert "2023-08-06" in started
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in started)
        assert {*chain(*(each["deployments"] for each in found))} == {"300", "301", "303"}
        [dependent] = [each for each in found if each["parentDependencies"]]
        assert dependent["parentDependencies"]["flags"] == {"21190": ["treatment"]}
        mutexes = self.all_of(sandbox, "mutexes")
        assert [slot["experiments"] for slot in mutexes[0]["slots"]] == [["21190"], ["21192"]]
        assert mutexes[0]["slots"][0]["holdouts"] == ["500"]
        version = self.all_of(sandbox, "versions")[0]
        assert version["createdBy"].endswith("@example.com")
        assert version["flagConfig"]["id"].isdigit()

    def test_given_no_wish_for_archived_ones_when_asked_then_they_are_left_out(
        self, sandbox: Sandbox
    ) -> None:
        for name in ("experiments", "flags"):
            truth = getattr(experiments, name)(sandbox.project, NOW)
            current = [each for each in truth if not each["deleted"]]
            assert self.all_of(sandbox, name) == current != truth
            times = [each["createdAt"] for each in truth if "createdAt" in each]
            assert times == sorted(times, reverse=True)
            one = truth[0]
            assert self.all_of(sandbox, name, includeArchived="true", key=one["key"]) == [one]
            of_project = self.all_of(sandbox, name, projectId="187520")
            assert {each["projectId"] for each in of_project} == {"187520"}

    def test_given_moments_when_asking_for_versions_then_the_start_counts_and_the_end_does_not(
        self, sandbox: Sandbox
    ) -> None:
        versions = self.all_of(sandbox, "versions", limit=7)
        times = [each["createdAt"] for each in versions]
        assert versions == experiments.versions(
            sandbox.project, datetime(2023, 1, 1, tzinfo=timezone.utc), NOW
        )
        assert times == sorted(times, reverse=True)
        # One a day
        assert len(times) == (NOW.date() - experiments.FIRST_DAY).days + (times[0] >= "2024-01-10")
        assert len({(v["flagConfig"]["id"], v["version"]) for v in versions}) == len(versions)
        assert self.all_of(sandbox, "versions", start=times[9], end=times[5]) == versions[6:10]
        assert self.all_of(sandbox, "versions", start=times[9], end=times[9]) == []

    def test_given_more_versions_than_a_page_may_have_when_asked_then_there_are_a_thousand(
        self,
    ) -> None:
        with Sandbox(project(), clock=lambda: NOW + timedelta(days=900)) as sandbox:
            body = self.ask(sandbox, "versions", limit=5000).json()
        assert len(body["versions"]) == 1000
        assert body["nextCursor"]

    def test_given_a_wrong_key_or_host_when_asked_then_it_is_refused(
        self, sandbox: Sandbox
    ) -> None:
        unauthorized = {"error": "Invalid or revoked API key"}
        for answer in (
            self.ask(sandbox, "flags", secret="0" * 32),
            self.ask(sandbox, "flags", host=self.EU_HOST),
            get(sandbox, "/api/1/flags", self.HOST),
        ):
            assert (answer.status_code, answer.json()) == (401, unauthorized)
        # The keys of a project's own lead to no flags.
        assert get(sandbox, "/api/1/flags").status_code == 404
        assert get(sandbox, "/api/2/events/list", self.HOST).status_code == 401
        assert self.ask(sandbox, "nothing").status_code == 404
        with Sandbox(project(), eu=True) as eu:
            assert self.ask(eu, "flags", host=self.EU_HOST).status_code == 200

    @pytest.mark.parametrize(
        ("name", "params"),
        [
            ("flags", {"limit": "0"}),
            ("flags", {"cursor": "-1"}),
            ("flags", {"start": "2024-01-01T00:00:00Z"}),
            ("versions", {"start": "yesterday"}),
            ("deployments", {"includeArchived": "true"}),
        ],
    )
    def test_given_a_parameter_that_makes_no_sense_when_asked_then_400(
        self, sandbox: Sandbox, name: str, params: dict[str, str]
    ) -> None:
        answer = self.ask(sandbox, name, **params)
        assert answer.status_code == 400
        assert answer.json().keys() == {"error"}

    def test_given_too_many_requests_in_a_second_or_a_day_when_asked_then_429(self) -> None:
        for limits in ([(3, 60.0)], [(100, 1.0), (3, 86_400.0)]):
            with Sandbox(project(), experiment_limits=limits) as sandbox:
                statuses = [self.ask(sandbox, "mutexes").status_code for _ in range(4)]
                assert statuses == [200, 200, 200, 429]
                assert get(sandbox, "/api/2/events/list").status_code == 200

    def test_given_a_config_when_made_then_it_has_the_management_key_only_if_asked_to(
        self, sandbox: Sandbox
    ) -> None:
        assert "management_api_key" not in sandbox.config()
        assert len({sandbox.api_key, sandbox.secret_key, sandbox.management_key}) == 3
