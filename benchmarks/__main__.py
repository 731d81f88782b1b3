"""Runs the benchmark: `python -m benchmarks [--quick] [--runs N] [--only NAME,...]`."""

import argparse
import shutil
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from benchmarks import readers
from benchmarks.archives import prepare
from benchmarks.measure import MeasureError
from benchmarks.report import Report
from benchmarks.scenarios import SCENARIOS, Bench, Plan

_CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks"


def main() -> int:
    """Run the scenarios, print the table, write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only show that everything works")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument(
        "--only", metavar="NAME,...", default=",".join(SCENARIOS), help="some of: %(default)s"
    )
    parser.add_argument("--report", type=Path, help="folder to write the report to")
    args = parser.parse_args()
    names: list[str] = args.only.split(",")
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    # Half a run does not replace the report of a whole one.
    is_whole = not args.quick and set(names) == set(SCENARIOS)
    folder = args.report or (Path(__file__).with_name("report") if is_whole else _CACHE / "report")
    day = _monday()
    archives = _CACHE / "archives"
    plan = Plan.quick(archives, day) if args.quick else Plan.full(archives, day, args.runs)
    report, failures = Report(), 0
    _say("preparing archives")
    _forget(archives, day)
    prepare(plan.projects)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(plan, report, Path(work), _published(may_install=not args.quick))
        for name in names:
            _say(name)
            try:
                SCENARIOS[name](bench)
            except MeasureError as error:
                # The others may have taken half an hour: they still make a report.
                failures += 1
                print(f"Error: {error}", file=sys.stderr)
                report.fact(name, "", "", str(error).splitlines()[0], holds=False)
    report.write(folder)
    print(f"\n{report.table()}\n\nReport: {folder / 'README.md'}")
    if args.quick:
        print("A quick run is too short for its figures to mean anything.")
    return 1 if failures else 0


def _monday() -> datetime:
    """Last week's: long over, yet not so long that a reader without `end_date` would not end."""
    today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=today.weekday() + 7)


def _forget(archives: Path, day: datetime) -> None:
    """Delete the archives of past weeks."""
    for folder in archives.glob("*"):
        if folder.name != f"{day:%Y%m%d}":
            shutil.rmtree(folder)


def _published(may_install: bool) -> readers.Reader | readers.NotInstalledError:
    try:
        return readers.package(_CACHE, may_install)
    except readers.NotInstalledError as error:
        return error


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
