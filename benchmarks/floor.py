"""The floor: the same archives, read by one thread of plain Python without the CDK.

Takes the arguments of a connector's `read`. With `--until inflate` or `--until parse` it stops
there, which tells what each step costs.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

import orjson
import requests

_CHUNK = 256 * 1024
_STEPS = ("inflate", "parse", "print")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("command", choices=["read"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--catalog")
    parser.add_argument("--until", choices=_STEPS, default="print")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text())
    until = _STEPS.index(arguments.until)
    out = sys.stdout.buffer
    for line in _lines(config):
        if until == 0 or line.isspace():
            continue
        event = orjson.loads(line)
        if until == 1:
            continue
        record = {"stream": "events", "data": event, "emitted_at": time.time_ns() // 1_000_000}
        out.write(orjson.dumps({"type": "RECORD", "record": record}) + b"\n")


def _lines(config: dict[str, Any]) -> Iterator[bytes]:
    start, end = (
        datetime.strptime(config[name], "%Y-%m-%dT%H:%M:%S%z")
        for name in ("start_date", "end_date")
    )
    step, hour = timedelta(hours=config["request_time_range"]), timedelta(hours=1)
    with requests.Session() as session:
        session.auth = (config["api_key"], config["secret_key"])
        while start < end:
            last = min(start + step - hour, end.replace(minute=0, second=0))
            with tempfile.TemporaryFile() as spooled:
                if _download(session, start, last, spooled):
                    with zipfile.ZipFile(spooled) as archive:
                        for member in archive.infolist():
                            with archive.open(member) as packed, gzip.open(packed) as lines:
                                yield from lines
            start += step


def _download(session: requests.Session, start: datetime, last: datetime, to: IO[bytes]) -> bool:
    """Whether there are events from `start` to `last`, which then are in the zip `to`."""
    window = {"start": f"{start:%Y%m%dT%H}", "end": f"{last:%Y%m%dT%H}"}
    url = "https://amplitude.com/api/2/export"
    with session.get(url, params=window, stream=True) as response:
        if response.status_code == 404:
            return False
        response.raise_for_status()
        for chunk in response.iter_content(_CHUNK):
            to.write(chunk)
    return True


if __name__ == "__main__":
    main()
