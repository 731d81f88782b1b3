"""Run the tests when clocks are awkward, by a clock that Debian's faketime has moved.

Usage: clocks.py [--days N] [TESTS ...], where TESTS is anything that pytest takes; unit_tests
without. A test must not know the moment: it sets its own clock, or does not look at it.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

_PYTEST = [str(Path(sys.executable).with_name("pytest")), "-q", "-n", "2", "--dist", "loadgroup"]
# Waits of threads never end where faketime moves their clock as well; where it doesn't, its sleep
# of Python 3.11 and later fails (0.9.10), so that processes sleep in another way.
_WAITS = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
_SLEEP = "import select, time\ntime.sleep = lambda s: select.select([], [], [], s) and None\n"
# What it is, where the machine is, and the time of UTC at which a run begins.
MOMENTS = [
    ("first minute of an hour", "UTC", "2026-11-27 21:00:02"),
    ("last minute of an hour", "UTC", "2026-11-27 21:59:30"),
    ("first minute of a day", "UTC", "2026-11-27 00:00:02"),
    ("last minute of a day", "UTC", "2026-11-27 23:59:30"),
    ("first day of a month", "UTC", "2026-08-01 09:41:00"),
    ("last day of a month", "UTC", "2026-04-30 18:20:00"),
    ("29 February", "UTC", "2028-02-29 11:07:00"),
    ("last minute of a 29 February", "UTC", "2028-02-29 23:59:30"),
    ("31 December", "UTC", "2026-12-31 15:33:00"),
    ("last minute of a year", "UTC", "2026-12-31 23:59:30"),
    ("Monday", "UTC", "2026-11-02 10:10:00"),
    ("Sunday", "UTC", "2026-11-08 10:10:00"),
    ("night in which clocks go forward", "UTC", "2027-03-28 00:59:30"),
    ("night in which clocks go forward", "Europe/Berlin", "2027-03-28 00:59:30"),
    ("night in which clocks go back", "UTC", "2026-10-25 00:59:30"),
    ("night in which clocks go back", "Europe/Berlin", "2026-10-25 00:59:30"),
    ("last minute of a day and month", "America/Los_Angeles", "2026-12-01 07:59:30"),
]


def random_moments(days: int, seed: int) -> list[tuple[str, str, str]]:
    """One of each of so many days in a row, at any second."""
    chance = random.Random(seed)
    first = datetime(2026, 1, 1) + timedelta(days=chance.randrange(3 * 365))
    seconds = (day * 86_400 + chance.randrange(86_400) for day in range(days))
    return [(f"seed {seed}", "UTC", f"{first + timedelta(seconds=s)}") for s in seconds]


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, metavar="N", help="N days at random hours instead")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of --days")
    parsed, tests = parser.parse_known_args(args)
    if not shutil.which("faketime"):
        print("faketime is missing, which moves the clock: apt-get install faketime.")
        return 2
    failed = []
    for name, zone, moment in random_moments(parsed.days, parsed.seed) if parsed.days else MOMENTS:
        command = ["faketime", f"{moment} UTC", *_PYTEST, *(tests or ["unit_tests"])]
        print(f"\n== {moment} UTC, {name} in {zone}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "sitecustomize.py").write_text(_SLEEP)
            variables = {**os.environ, **_WAITS, "TZ": zone, "PYTHONPATH": folder}
            if subprocess.run(command, env=variables).returncode:
                failed.append(f"{moment} UTC, {name} in {zone}")
    print("\nFailed:" if failed else "\nThe tests hold at all of these moments.", *failed, sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
