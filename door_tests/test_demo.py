"""The demo's syncs through PyAirbyte, from the sandbox into DuckDB."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from demo.__main__ import database_name, main, settings, sync_and_compare, truth
from demo.sync import Count, SyncError, sync
from sandbox import Fault, Project, Sandbox, experiments

pytestmark = [
    pytest.mark.skipif(
        find_spec("airbyte") is None, reason="PyAirbyte does not support this version of Python"
    ),
    pytest.mark.xdist_group("demo"),  # they share two syncs
]

NOW = datetime.now(timezone.utc)
FIRST_HOUR = (NOW - timedelta(hours=40)).replace(minute=0, second=0, microsecond=0)
DELAY, LONGER_DELAY = timedelta(hours=2), timedelta(hours=6)


class Syncs(NamedTuple):
    """Two syncs, hours apart, what the sandbox held at each, and the database they filled."""

    first: dict[str, Count]
    first_truth: dict[str, int]
    second: dict[str, Count]
    second_truth: dict[str, int]
    hours: list[datetime]
    new_hours: list[datetime]
    sandbox: Sandbox
    db: Path


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    if (NOW.hour, NOW.minute) >= (23, 58):
        pytest.skip("the day would end during the test")
    project = Project(events_per_hour=12, first_hour=FIRST_HOUR)
    with (
        Sandbox(project, clock=lambda: NOW, export_delay=LONGER_DELAY) as sandbox,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**sandbox.env, "NO_LIVE_PROGRESS": "1"}.items():
            patch.setenv(name, value)
        yield sandbox


@pytest.fixture(scope="module")
def syncs(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Syncs:
    db = tmp_path_factory.mktemp("demo") / "demo.duckdb"
    hours, first_truth = sandbox.exportable_hours(FIRST_HOUR, NOW), truth(sandbox)
    first = sync(sandbox.config(**settings(sandbox)), db)
    sandbox.export_delay = DELAY
    new_hours = sandbox.exportable_hours(FIRST_HOUR, NOW)[len(hours) :]
    second = sync(sandbox.config(**settings(sandbox)), db)
    return Syncs(first, first_truth, second, truth(sandbox), hours, new_hours, sandbox, db)


def test_given_a_project_when_synced_then_each_table_holds_what_the_sandbox_does(
    syncs: Syncs,
) -> None:
    assert {stream: count.held for stream, count in syncs.first.items()} == syncs.first_truth
    assert {stream: count.moved for stream, count in syncs.first.items()} == syncs.first_truth
    assert syncs.first_truth["events"] > 300


def test_given_time_has_passed_when_synced_again_then_the_tables_have_grown_by_the_new_hours(
    syncs: Syncs,
) -> None:
    new_events = sum(map(syncs.sandbox.project.event_count, syncs.new_hours))

    assert len(syncs.new_hours) == 4
    assert syncs.second["events"].held == syncs.first["events"].held + new_events
    assert {stream: count.held for stream, count in syncs.second.items()} == syncs.second_truth


def test_given_time_has_passed_when_synced_again_then_only_the_last_hour_and_day_are_reread(
    syncs: Syncs,
) -> None:
    moved = {stream: count.moved for stream, count in syncs.second.items()}
    reread = [syncs.hours[-1], *syncs.new_hours]
    project = syncs.sandbox.project
    replays = list(syncs.sandbox.iter_session_replays(FIRST_HOUR))
    # To the second, a day before the latest.
    newest = datetime.fromisoformat(replays[-1]["start_time"].replace("Z", "+00:00"))
    since = f"{newest - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    versions = experiments.versions(project, FIRST_HOUR, NOW)
    saved = [datetime.fromisoformat(v["createdAt"].replace("Z", "+00:00")) for v in versions]
    last_saved = max(saved, default=NOW)
    saved_again = [moment for moment in saved if moment > last_saved - timedelta(hours=1)]

    assert moved == {
        **syncs.second_truth,
        "events": sum(map(project.event_count, reread)),
        "active_users": 1,
        "daily_user_counts": 2,
        # The last week and month; the project may have begun in the ones before.
        "weekly_user_counts": 2,
        "monthly_user_counts": 2,
        "average_session_length": 1,
        "sessions_per_user": 1,
        "session_lengths": len(project.session_lengths(NOW.date())),
        "event_counts": 2 * len(project.events_list()),
        # None has been computed anew.
        "cohort_members": 0,
        "flag_versions": len(saved_again),
        "report_signups_by_country": len(project.count_users("active", [NOW.date()], "country")),
        "session_replays": sum(replay["start_time"] > since for replay in replays),
    }


def test_given_a_synced_project_when_its_columns_are_described_then_they_have_fitting_types(
    syncs: Syncs,
) -> None:
    import duckdb

    with duckdb.connect(str(syncs.db), read_only=True) as connection:
        types = {
            (table, column): kind
            for table, column, kind in connection.execute(
                "SELECT table_name, column_name, data_type FROM duckdb_columns()"
            ).fetchall()
        }

    assert types["events", "server_upload_time"] == "TIMESTAMP"
    assert types["events", "event_properties"] == "JSON"
    assert types["active_users", "date"] == "DATE"
    assert types["active_users", "statistics"] == "JSON"
    assert types["average_session_length", "length"] == "DECIMAL(38,9)"
    assert types["cohorts", "syncmetadata"] == "JSON"


@pytest.mark.parametrize(
    "tables",
    [
        ["events", "daily_user_counts", "retention"],
        ["events"],
        ["daily_user_counts"],
        ["retention"],
        ["report_signups_by_country"],
        ["events", "report_checkout"],
        ["cohorts"],
    ],
    ids=",".join,
)
@pytest.mark.parametrize("is_filled", [True, False], ids=["filled", "empty"])
def test_given_some_tables_when_drawn_then_the_picture_is_a_png_or_there_is_none(
    syncs: Syncs, tmp_path: Path, tables: list[str], is_filled: bool
) -> None:
    import duckdb

    from demo.picture import draw

    db, picture = tmp_path / "some.duckdb", tmp_path / "pictures" / "demo.png"
    with duckdb.connect(str(db)) as connection:
        connection.execute(f"ATTACH '{syncs.db}' AS synced (READ_ONLY)")
        for table in tables:
            query = f"SELECT * FROM synced.{table} WHERE {is_filled}"
            connection.execute(f"CREATE TABLE {table} AS {query}")

    is_drawn = is_filled and tables != ["cohorts"]
    assert draw(db, picture) == is_drawn
    assert picture.exists() == is_drawn
    if is_drawn:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_given_a_synced_project_when_summed_by_sql_then_the_picture_shows_the_truth(
    syncs: Syncs,
) -> None:
    import duckdb

    from demo.picture import DAILY_USERS, EVENT_TYPES, EVENTS_PER_HOUR, RETENTION

    with duckdb.connect(str(syncs.db), read_only=True) as connection:
        events, types, users, cohorts = (
            connection.execute(query).fetchall()
            for query in (EVENTS_PER_HOUR, EVENT_TYPES, DAILY_USERS, RETENTION)
        )

    sandbox, hours = syncs.sandbox, [*syncs.hours, *syncs.new_hours]
    project = sandbox.project
    days = [FIRST_HOUR.date() + timedelta(days=n) for n in range(3)]
    days = [day for day in days if day <= NOW.date()]
    assert events == [(hour.replace(tzinfo=None), project.event_count(hour)) for hour in hours]
    of_types = Counter(event["event_type"] for hour in hours for event in project.events(hour))
    assert dict(types) == of_types
    assert [count for _, count in types] == sorted(of_types.values())
    assert users == [
        (metric, day, sandbox.count_users(metric, day)["(all)"])
        for metric in ("active", "new")
        for day in days
    ]
    assert cohorts == [
        (day, number, cell["count"] / cell["outof"], not cell["incomplete"])
        for day in days
        for number, cell in enumerate(sandbox.retention(day)[1:])
    ]


def test_given_a_sync_that_misses_events_when_compared_then_it_fails_and_names_the_table(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.inject(Fault("/api/2/export", status=404, body=b"Raw data files were not found."))

    with pytest.raises(SyncError, match=r"do not hold what the sandbox does: events$"):
        sync_and_compare(sandbox, tmp_path / "demo.duckdb", ["events", "cohorts"])


def test_given_a_wrong_key_when_synced_then_one_line_says_so_in_the_connectors_words(
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secrets").mkdir()
    config = sandbox.config(secret_key="0123456789abcdef" * 2)
    Path("secrets", "config.json").write_text(json.dumps(config))

    assert main(["--config", "secrets/config.json"]) == 1

    output = "".join(capfd.readouterr())
    assert "The API Key and the Secret Key were refused" in output.splitlines()[-1]
    assert "0123456789abcdef" not in output
    assert sandbox.api_key not in output
    assert "Traceback" not in output
    [db] = (tmp_path / ".cache").rglob("*.duckdb")
    assert f"Syncing the project of secrets/config.json into {db.relative_to(tmp_path)}\n" in output
    assert re.fullmatch(r".cache/secrets/config-[0-9a-f]{8}.duckdb", str(db.relative_to(tmp_path)))


def test_given_configs_of_other_folders_or_projects_when_named_then_none_has_anothers_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = {"api_key": "1" * 32}, {"api_key": "2" * 32}
    names = [
        database_name(Path("a/config.json"), one),
        database_name(Path("b/config.json"), one),
        database_name(Path("a/config.json"), other),
        database_name(Path("/elsewhere/config.json"), one),
    ]

    assert len(set(names)) == len(names)
    assert database_name(tmp_path / "a" / "config.json", {"api_key": f"{'1' * 32}\n"}) == names[0]
    assert not any(Path(name).is_absolute() for name in names)


def test_given_a_database_of_someone_else_when_the_demo_is_to_use_it_then_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = tmp_path / "precious.duckdb"
    db.write_bytes(b"precious")

    assert main(["--db", str(db)]) == 1

    assert "delete it or name another file" in capsys.readouterr().err
    assert db.read_bytes() == b"precious"
