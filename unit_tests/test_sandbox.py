"""The sandbox, as a client that knows only Amplitude's documentation sees it."""

import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox import Fault, Project, Sandbox

# Their timing is their own: no other test of theirs beside them.
pytestmark = pytest.mark.xdist_group("sandbox")

NOW = datetime(2024, 1, 10, 12, 30, tzinfo=timezone.utc)
FIRST_HOUR = datetime(2024, 1, 10, 4, tzinfo=timezone.utc)
EMPTY_HOUR = datetime(2024, 1, 10, 6, tzinfo=timezone.utc)
DAYS: dict[str, Any] = {"start": "20240109", "end": "20240110"}
STANDARD, EU = "https://amplitude.com", "https://analytics.eu.amplitude.com"
FORBIDDEN = {
    "error": {
        "http_code": 403,
        "type": "unspecified",
        "metadata": {"details": "Invalid API/Secret Key combination"},
    }
}


def project(**options: Any) -> Project:
    return Project(**{"first_hour": FIRST_HOUR, "empty_hours": frozenset([EMPTY_HOUR]), **options})


def get(
    sandbox: Sandbox,
    path: str,
    host: str = STANDARD,
    secret_key: str = "",
    timeout: float = 10,
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


def export(sandbox: Sandbox, start: str, end: str) -> requests.Response:
    return get(sandbox, "/api/2/export", start=start, end=end)


def exported_events(body: bytes) -> list[dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        members = [gzip.decompress(archive.read(name)) for name in archive.namelist()]
    return [json.loads(line) for member in members for line in member.splitlines()]


def error_of(response: requests.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error["http_code"] == response.status_code
    return error


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


def test_given_a_project_without_events_when_asked_then_it_holds_nothing() -> None:
    nothing = Project(events_per_hour=0)

    assert nothing.members(FIRST_HOUR) == []
    assert set(nothing.active_users(NOW.date()).values()) == {0}
    assert nothing.average_session_length(NOW.date()) == 0


def test_given_a_wrong_secret_key_when_calling_then_403_has_the_captured_body(
    sandbox: Sandbox,
) -> None:
    for path in ("/api/2/users", "/api/3/cohorts"):
        response = get(sandbox, path, secret_key="0" * 32)
        assert (response.status_code, response.json()) == (403, FORBIDDEN)

    response = get(sandbox, "/api/2/export", secret_key="0" * 32)
    assert (response.status_code, response.text) == (403, "Invalid API Key")


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
def test_given_no_exportable_data_when_exporting_then_404_has_the_captured_text(
    sandbox: Sandbox, hour: str
) -> None:
    response = export(sandbox, hour, hour)

    assert (response.status_code, response.text) == (404, "Raw data files were not found.")


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
    assert export(sandbox, start, end).status_code == 400


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
    assert response.json() == {
        "data": {
            "xValues": ["2024-01-09", "2024-01-10", "2024-01-11", "2024-01-12"],
            "series": [[0, today, 0, 0]],
            "seriesCollapsed": [[0]],
            "seriesLabels": [0],
            "seriesMeta": [{"segmentIndex": 0}],
        }
    }


def test_given_a_project_time_zone_when_its_day_has_not_begun_then_it_is_0() -> None:
    with Sandbox(project(), clock=lambda: NOW, project_timezone="Pacific/Kiritimati") as sandbox:
        tomorrow = get(sandbox, "/api/2/users", start="20240111", end="20240111")
        sandbox.project_timezone = "UTC"
        future = get(sandbox, "/api/2/users", start="20240111", end="20240111")

    assert tomorrow.json()["data"]["series"] != [[0]]
    assert future.json()["data"]["series"] == [[0]]


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


def test_given_days_when_asking_for_session_length_then_seconds_are_those_of_the_truth(
    sandbox: Sandbox,
) -> None:
    data = get(sandbox, "/api/2/sessions/average", start="20240110", end="20240111").json()["data"]

    length = sandbox.project.average_session_length(date(2024, 1, 10))
    assert (data["xValues"], data["series"]) == (["2024-01-10", "2024-01-11"], [[length, 0]])


def test_given_the_plain_lists_when_asking_then_they_are_the_truth_under_their_root_key(
    sandbox: Sandbox,
) -> None:
    truth = sandbox.project

    assert get(sandbox, "/api/2/events/list").json() == {"data": truth.events_list()}
    assert get(sandbox, "/api/3/annotations").json() == {"data": truth.annotations()}
    synced = get(sandbox, "/api/3/cohorts", includeSyncInfo="true").json()
    assert synced == {"cohorts": truth.cohorts()}
    plain = get(sandbox, "/api/3/cohorts").json()["cohorts"]
    assert [row.keys() for row in plain] == [
        row.keys() - {"syncMetadata"} for row in truth.cohorts()
    ]


def test_given_requests_when_looking_back_then_each_is_recorded_with_its_cost(
    sandbox: Sandbox,
) -> None:
    get(sandbox, "/api/2/users", **DAYS)
    get(sandbox, "/api/2/users", g="country", **DAYS)
    get(sandbox, "/api/2/sessions/average", **DAYS)
    get(sandbox, "/api/2/events/list")
    export(sandbox, "20240110T04", "20240110T04")

    assert [request.cost for request in sandbox.requests] == [2, 10, 8, 1, 0]
    last = sandbox.requests[-1]
    assert (last.method, last.host, last.path) == ("GET", "amplitude.com", "/api/2/export")
    assert last.params == {"start": "20240110T04", "end": "20240110T04"}
    assert last.status == 200
    assert last.finished is not None
    assert last.finished >= last.started


def test_given_a_spent_budget_when_querying_then_429_has_the_captured_body(
    sandbox: Sandbox,
) -> None:
    half_a_year: dict[str, Any] = {"start": "20230301", "end": "20230831"}

    assert get(sandbox, "/api/2/sessions/average", **half_a_year).status_code == 200
    refused = get(sandbox, "/api/2/sessions/average", **half_a_year)

    assert refused.status_code == 429
    assert error_of(refused) == {
        "http_code": 429,
        "type": "unspecified",
        "message": "Unspecified Error",
        "metadata": {
            "details": "Too Many Requests: Exceeded rate limit with query of cost 736",
        },
    }
    assert "Retry-After" not in refused.headers
    assert get(sandbox, "/api/2/events/list").status_code == 200


def test_given_a_spent_budget_when_its_time_and_a_skew_have_passed_then_queries_run_again() -> None:
    with Sandbox(project(), cost_limits=[(2, 0.5)], cost_skew=0.5) as sandbox:
        statuses = [get(sandbox, "/api/2/events/list").status_code for _ in range(3)]
        time.sleep(0.5)
        statuses.append(get(sandbox, "/api/2/events/list").status_code)
        time.sleep(0.5)
        statuses.append(get(sandbox, "/api/2/events/list").status_code)

    assert statuses == [200, 200, 429, 429, 200]


def test_given_five_requests_in_progress_when_a_sixth_arrives_then_it_gets_429(
    sandbox: Sandbox,
) -> None:
    sandbox.inject(Fault("/api/*", times=5, delay=0.5))
    paths = ["/api/2/events/list", "/api/3/cohorts", "/api/3/annotations"] * 2

    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda path: get(sandbox, path), paths))

    assert sorted(response.status_code for response in responses) == [200] * 5 + [429]
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
    deadline = time.monotonic() + 5
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

    assert set(threading.enumerate()) == threads
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
    assert process.communicate(timeout=10)[0] == "\n"
    assert process.returncode == 0
    assert os.listdir(tmp_path) == []
