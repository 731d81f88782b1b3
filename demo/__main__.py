"""Sync an Amplitude project into a DuckDB file and draw it.

Without --config the project is a synthetic one, served by the sandbox on this machine.
"""

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.sync import Count, SyncError, import_pyairbyte, sync

if TYPE_CHECKING:
    from sandbox import Sandbox

_CACHE = Path(".cache")
_EXPORT_DELAY = timedelta(hours=2)
_PASSING = timedelta(hours=6)
_COHORT = "k3m9x1az"
_SIGNUPS, _STEPS = "Signed Up", ["Search Performed", "Checkout Completed"]
REPORTS = [
    {
        "name": "signups_by_country",
        "query": {
            "kind": "segmentation",
            "events": [_SIGNUPS],
            "metric": "totals",
            "group_by": ["country"],
        },
    },
    {"name": "checkout", "query": {"kind": "funnel", "events": _STEPS}},
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 1 when something is wrong, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--config", type=Path, help="connector config (JSON) of a real project")
    parser.add_argument(
        "--db", type=Path, help="DuckDB file (one in .cache/ per config and project)"
    )
    parser.add_argument("--picture", type=Path, help="PNG file (beside it)")
    parser.add_argument("--streams", default="", help="comma-separated names (all)")
    options = parser.parse_args(arguments)
    streams = [stream.strip() for stream in options.streams.split(",") if stream.strip()]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    if not (options.config and sys.stderr.isatty()):
        # PyAirbyte's live view is worth its space only where reading takes long.
        os.environ["NO_LIVE_PROGRESS"] = "1"
    try:
        import_pyairbyte()
        config = _load(options.config) if options.config else {}
        name = database_name(options.config, config) if options.config else "demo"
        db: Path = options.db or _CACHE / f"{name}.duckdb"
        picture: Path = options.picture or _CACHE / f"{name}.png"
        if options.config:
            print(f"Syncing the project of {options.config} into {db}")
            counts = sync(config, db, streams)
            print_counts(counts)
        else:
            _start_afresh(db, is_ours=options.db is None)
            counts = run_demo(db, streams)
        _show(db, picture, list(counts))
    except SyncError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What had been saved before is kept.", file=sys.stderr)
        return 130
    return 0


def run_demo(db: Path, streams: Sequence[str]) -> dict[str, Count]:
    """Sync a week of the sandbox's events, let hours pass, and sync again.

    Returns the counts of the second sync.

    Raises:
        SyncError: a sync failed, or a table does not hold what the sandbox does.
    """
    from sandbox import Project, Sandbox

    midnight = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    project = Project(events_per_hour=60, first_hour=midnight - timedelta(days=7))
    with Sandbox(project, export_delay=_EXPORT_DELAY + _PASSING) as sandbox:
        os.environ.update(sandbox.env)
        print("The sandbox, a stand-in for Amplitude's API, serves a week of made-up events.")
        print("\nFirst sync: all there is.")
        sync_and_compare(sandbox, db, streams)
        sandbox.export_delay = _EXPORT_DELAY
        [computed] = [c["lastComputed"] for c in sandbox.cohorts() if c["id"] == _COHORT]
        sandbox.compute_cohort(_COHORT, computed + int(_PASSING.total_seconds()))
        hours = _PASSING // timedelta(hours=1)
        print(
            f"\nSecond sync, as if {hours} hours later. Only what may be new moves: events from the"
        )
        print(
            "last hour read on, daily numbers from the last day on, members of the one cohort that"
        )
        print("has been computed anew; the short lists are read whole.")
        return sync_and_compare(sandbox, db, streams)


def sync_and_compare(sandbox: "Sandbox", db: Path, streams: Sequence[str]) -> dict[str, Count]:
    """Sync from the sandbox, print the counts, and compare them with what it holds.

    Raises:
        SyncError: the sync failed, or a table does not hold what the sandbox does.
    """
    before = truth(sandbox)
    counts = sync(sandbox.config(**settings(sandbox)), db, streams)
    # An hour or a day may have begun meanwhile.
    after = truth(sandbox)
    print_counts(counts, after)
    wrong = [s for s, count in counts.items() if not before[s] <= count.held <= after[s]]
    if wrong:
        raise SyncError(f"these tables do not hold what the sandbox does: {', '.join(wrong)}")
    return counts


def settings(sandbox: "Sandbox") -> dict[str, Any]:
    """What the demo's config has besides the keys and a start: short look-backs, since the defaults
    would read most of this small project again, two reports, and the key to experiments."""
    return {
        "lookback_window_hours": 1,
        "dashboard_lookback_days": 0,
        # A first sync of all streams costs nearly what Amplitude gives for five minutes.
        "active_users_group_by_country": False,
        "management_api_key": sandbox.management_key,
        "reports": REPORTS,
    }


def truth(sandbox: "Sandbox") -> dict[str, int]:
    """The number of records per stream that can be read from the sandbox now."""
    from sandbox import experiments
    from sandbox.project import bucket

    project, now = sandbox.project, sandbox.clock()
    start, today = project.first_hour or now, now.date()
    days = [start.date() + timedelta(days=n) for n in range((today - start.date()).days + 1)]
    # Retention has a row for day 0, revenue none.
    ages = [(today - day).days for day in days]
    jobs = project.deletion_jobs(days[0], today + timedelta(days=30), today)
    tables = project.lookup_tables()
    cohorts = [
        (c, c["lastComputed"] // 3600)
        for c in sandbox.cohorts()
        if not c["archived"] and c["definition"]["countGroup"]["name"] == "User"
    ]
    first_computed = {c["id"]: c["lastComputed"] // 3600 for c in project.cohorts()}
    span = [("start", f"{days[0]:%Y%m%d}"), ("end", f"{today:%Y%m%d}"), ("i", "1")]
    signups = [("e", json.dumps({"event_type": _SIGNUPS})), ("m", "totals"), ("g", "country")]
    steps = [("e", json.dumps({"event_type": step})) for step in _STEPS]
    return {
        "events": sum(map(project.event_count, sandbox.exportable_hours(start, now))),
        "active_users": len(days),
        "daily_user_counts": 2 * len(days),
        "weekly_user_counts": 2 * len({bucket(day, 7)[0] for day in days}),
        "monthly_user_counts": 2 * len({bucket(day, 30)[0] for day in days}),
        "average_session_length": len(days),
        "sessions_per_user": len(days),
        "session_lengths": sum(len(project.session_lengths(day)) for day in days),
        "retention": sum(min(age, 30) + 1 for age in ages),
        "revenue_ltv": sum(min(age + 1, 90) for age in ages),
        "event_counts": 2 * len(days) * len(project.events_list()),
        "annotations": len(project.annotations()),
        "annotation_categories": len(project.annotation_categories()),
        "cohorts": len(project.cohorts()),
        # Each hour, one member leaves and another comes; who left keeps a row.
        "cohort_members": sum(
            c["size"] and c["size"] + hour - first_computed[c["id"]] for c, hour in cohorts
        ),
        "events_list": len(project.events_list()),
        "channel_classifiers": len(project.channel_classifiers()),
        "event_categories": len(project.event_categories()),
        "event_types": len(project.event_types()),
        "event_properties": len(project.event_properties()),
        "user_properties": len(project.user_properties()),
        "group_properties": len(project.group_properties()),
        "session_replays": sum(1 for _ in project.iter_session_replays(start, now)),
        "lookup_tables": len(tables),
        "lookup_table_rows": sum(len(project.lookup_rows(table["name"])) for table in tables),
        "deletion_jobs": len(jobs),
        "deleted_users": sum(len(job["amplitude_ids"]) for job in jobs),
        "experiments": len(experiments.experiments(project, now)),
        "flags": len(experiments.flags(project, now)),
        "flag_versions": len(experiments.versions(project, start, now)),
        "deployments": len(experiments.deployments(project, now)),
        "mutexes": len(experiments.mutexes(project, now)),
        "holdouts": len(experiments.holdouts(project, now)),
        "report_signups_by_country": len(sandbox.segmentation([*signups, *span])),
        "report_checkout": len(sandbox.funnel([*steps, *span])),
    }


def print_counts(counts: Mapping[str, Count], expected: Mapping[str, int] | None = None) -> None:
    """Print per stream: rows this sync has moved, rows of the table, and rows expected in it."""
    print(f"\n  {'stream':24}{'moved':>10}{'in DuckDB':>12}{'in sandbox' if expected else '':>12}")
    for stream, count in counts.items():
        numbers = f"{count.moved:>10,}{count.held:>12,}"
        print(f"  {stream:24}{numbers}" + (f"{expected[stream]:>12,}" if expected else ""))


def _start_afresh(db: Path, is_ours: bool) -> None:
    if db.exists() and not is_ours:
        raise SyncError(f"{db} exists, and the demo starts afresh: delete it or name another file.")
    for file in (db, db.with_name(f"{db.name}.wal")):
        file.unlink(missing_ok=True)


def database_name(path: Path, config: Mapping[str, Any]) -> str:
    """What a project's files are called: the path of its config, and a short form of its key.

    Neither a config of the same name elsewhere, nor another project's in the same place, goes on
    from where this one left off.
    """
    place = path.resolve()
    here = Path.cwd()
    place = place.relative_to(here if place.is_relative_to(here) else place.anchor)
    key = hashlib.sha256(str(config.get("api_key")).strip().encode()).hexdigest()[:8]
    return str(place.with_name(f"{place.stem}-{key}"))


def _load(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SyncError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SyncError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise SyncError(f"{path} must hold a JSON object.")
    return config


def _show(db: Path, picture: Path, streams: Sequence[str]) -> None:
    from demo.picture import draw

    query = f"FROM {streams[0]} LIMIT 5"
    if "events" in streams:
        query = "SELECT event_type, count(*) AS n FROM events GROUP BY ALL ORDER BY n DESC"
    python = sys.executable.removeprefix(f"{Path.cwd()}/")
    print(f"\nPicture:  {picture if draw(db, picture) else 'nothing to draw yet'}")
    print(f"DuckDB:   {db}\nTry it:   {python} -c \\")
    print(f"""  "import duckdb; db = duckdb.connect('{db}'); db.sql('{query}').show()\"""")


if __name__ == "__main__":
    sys.exit(main())
