"""The command ``probe`` against the sandbox: what it asks, what it costs, and what it tells."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import REPORTS
from sandbox import Fault, Project, Sandbox
from sandbox.project import EVENT_TYPES
from source_amplitude.probe import probe
from unit_tests.installed import SOURCE_AMPLITUDE, Connector, discovered_streams, forms_of

pytestmark = pytest.mark.usefixtures("within_an_hour")

CHART = {"name": "board", "query": {"kind": "chart", "chart_id": "s0ngs7wk"}}
DEAR = {
    "name": "dear",
    "query": {"kind": "funnel", "events": [*EVENT_TYPES][:4], "group_by": ["country"]},
}


def sandbox_of(**options: Any) -> Sandbox:
    moment = datetime.now(timezone.utc)
    first_hour = moment - timedelta(days=40)
    return Sandbox(
        Project(events_per_hour=40, first_hour=first_hour), clock=lambda: moment, **options
    )


@pytest.fixture
def sandbox(within_an_hour: None) -> Iterator[Sandbox]:
    with sandbox_of() as running:
        yield running


Probe = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Probe:
    """Probe a sandbox in this process: exit code, what was printed, and the shapes."""

    def probed(sandbox: Sandbox, **settings: Any) -> tuple[int, str, str]:
        for name, value in sandbox.env.items():
            monkeypatch.setenv(name, value)
        config, shapes = tmp_path / "config.json", tmp_path / "shapes.txt"
        config.write_text(json.dumps(sandbox.config(**settings)))
        code = probe(["--config", str(config), "--shapes", str(shapes)])
        printed = "".join(capsys.readouterr())
        for secret in (sandbox.api_key, sandbox.secret_key, sandbox.management_key):
            assert not any(form in printed for form in forms_of(secret)), "a key was printed"
        return code, printed, shapes.read_text() if shapes.exists() else ""

    return probed


def answers(printed: str) -> dict[str, str]:
    """What the table has of each stream under ``answered``."""
    table = printed.split("\n\n")[0].splitlines()[1:]
    return {line[:28].strip(): line[28:45].strip() for line in table}


def test_given_a_project_when_probed_then_all_streams_answer_for_less_than_150_units(
    sandbox: Sandbox, run: Probe
) -> None:
    reports = [*REPORTS, {"name": "kinds", "query": {"kind": "composition", "property": "country"}}]
    code, printed, shapes = run(
        sandbox,
        management_api_key=sandbox.management_key,
        reports=[*reports, CHART],
        user_counts_group_by="platform",
    )
    assert code == 0
    found = answers(printed)
    names = [s["name"] for s in discovered_streams(True, json.dumps([*reports, CHART]))]
    assert sorted(found) == sorted(names)
    assert {name for name, answer in found.items() if answer == "not asked"} == {
        *("cohort_members", "raw_events_files", "report_board")
    }
    assert set(found.values()) - {"not asked"} <= {"yes", "nothing there"}
    dashboard = [
        r for r in sandbox.requests if "taxonomy" not in r.path and "/api/1/" not in r.path
    ]
    assert 50 < sum(request.cost for request in dashboard) < 150
    assert sandbox.cohort_jobs.jobs == {}
    [export] = [r.params for r in sandbox.requests if r.path == "/api/2/export"]
    assert export["start"] == export["end"]
    # A line for each answer, and no value in any.
    assert len(shapes.splitlines()) == len(sandbox.requests)
    values = [*EVENT_TYPES, "Germany", "demo@example.com", "skuToProduct", "new-player"]
    assert [value for value in values if value in shapes] == []
    assert "active_users: GET amplitude.com/api/2/users (start, end, m, i, g) HTTP 200: " in shapes
    assert "xValues: [1 * date 0000-00-00]" in shapes
    assert "/api/3/lookup_table/*/csv" in shapes


def test_given_a_long_history_when_probed_then_a_first_sync_is_told_in_minutes(
    sandbox: Sandbox, run: Probe
) -> None:
    start = f"{datetime.now(timezone.utc) - timedelta(days=365):%Y-%m-%dT00:00:00Z}"
    _, printed, _ = run(sandbox, start_date=start)
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    # 365 days * 5 units, of which 980 are spent in 5 minutes and 15 seconds
    assert lines["active_users"].endswith("10 min")
    assert lines["retention"].endswith("16 min")
    assert lines["annotations"].endswith("< 1 min")


def test_given_wrong_keys_when_probed_then_one_request_tells_what_to_do(
    sandbox: Sandbox, run: Probe
) -> None:
    code, printed, _ = run(sandbox, secret_key="0" * 32)
    assert code == 1
    assert "HTTP 403" in printed
    assert "Copy both keys anew" in printed
    assert "set Data Region to EU Residency Server" in printed
    assert len(sandbox.requests) == 1


def test_given_missing_plans_when_probed_then_they_are_named_and_nothing_has_failed(
    run: Probe,
) -> None:
    plans = frozenset({"taxonomy", "cohorts", "session_replays"})
    with sandbox_of(missing_plans=plans) as sandbox:
        code, printed, _ = run(sandbox)
    assert code == 0
    found = answers(printed)
    missing = {name for name, answer in found.items() if answer == "not in the plan"}
    taxonomy = ("event_categories", "event_types", "event_properties", "user_properties")
    assert missing == {*taxonomy, "group_properties", "cohorts", "session_replays"}
    assert "the project's plan has no Taxonomy API" in printed
    assert "that takes the Behavioral Cohorts add-on" in printed
    assert "Management API Key is not set" in printed


def test_given_an_unknown_shape_and_a_new_field_when_probed_then_both_are_told_with_the_shape(
    sandbox: Sandbox, run: Probe
) -> None:
    sandbox.inject(
        Fault(
            "/api/2/sessions/average",
            times=None,
            transform=lambda _: b'{"data": {"xValues": ["Week of Ada"], "series": [[4711]]}}',
        )
    )
    sandbox.inject(
        Fault(
            "/api/3/annotations", transform=lambda b: b.replace(b'"label"', b'"mood": 1, "label"')
        )
    )
    code, printed, shapes = run(sandbox)
    assert code == 1
    found = answers(printed)
    assert found["average_session_length"] == "unreadable"
    assert found["sessions_per_user"] == found["annotations"] == "yes"
    shape = "{data: {xValues: [1 * text], series: [1 * [1 * integer]]}}"
    assert f"Shape of the answer, without its values: {shape}" in printed
    assert f"HTTP 200: {shape}" in shapes
    assert "4711" not in printed + shapes
    assert "annotations: New fields: mood." in printed


def test_given_a_report_that_is_too_dear_when_probed_then_it_is_not_asked(
    sandbox: Sandbox, run: Probe
) -> None:
    code, printed, _ = run(sandbox, reports=[{**DEAR, "name": f"dear_{n}"} for n in range(3)])
    assert code == 0
    found = answers(printed)
    # Four steps by country cost 40 a day.
    assert [found[f"report_dear_{n}"] for n in range(3)] == ["yes", "yes", "not asked"]
    assert "report_dear_2: 40 units more than the" in printed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "Error: "),
        ("[]", "it is no JSON object"),
        ('{"api_key": "a", "secret_key": "b"}', "Start Date (start_date) is missing."),
        (
            '{"api_key": "a", "secret_key": "b", "start_date": "2130-01-01"}',
            "Start Date (start_date) is not valid: '2130-01-01' lies in the future",
        ),
    ],
)
def test_given_an_unusable_config_when_probed_then_it_is_named_and_nothing_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    assert probe(["--config", str(config)]) == 1
    assert expected in capsys.readouterr().err
    assert probe(["--config", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


def test_when_the_installed_command_is_asked_to_probe_then_it_does(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    run = Connector(tmp_path, sandbox, SOURCE_AMPLITUDE).run("probe")
    assert run.exit_code == 0
    assert answers(run.output)["events"] == "yes"
