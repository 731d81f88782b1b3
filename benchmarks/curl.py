"""The archives of a span, hour by hour, as curl gets them: one after the other, into files.

Takes the arguments of a connector's `read`; the files go where the connector's would.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

_HOUR = timedelta(hours=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curl", description=__doc__)
    parser.add_argument("command", choices=["read"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--catalog")
    config = json.loads(parser.parse_args().config.read_text())
    curl = shutil.which("curl")
    if not curl:
        sys.exit("curl is not installed")
    start, end = (
        datetime.strptime(config[name], "%Y-%m-%dT%H:%M:%S%z")
        for name in ("start_date", "end_date")
    )
    options = [
        "silent",
        "show-error",
        "fail",
        f'user = "{config["api_key"]}:{config["secret_key"]}"',
        f'cacert = "{os.environ["REQUESTS_CA_BUNDLE"]}"',
    ]
    for n in range((end - start) // _HOUR + 1):
        hour = f"{start + n * _HOUR:%Y%m%dT%H}"
        options += [
            f'url = "https://amplitude.com/api/2/export?start={hour}&end={hour}"',
            f'output = "{os.environ["AIRBYTE_STAGING_DIRECTORY"]}/{hour}.zip"',
        ]
    # Arguments would show the keys.
    with tempfile.TemporaryFile("w+") as file:
        file.write("\n".join(options))
        file.seek(0)
        os.dup2(file.fileno(), sys.stdin.fileno())
        os.execv(curl, [curl, "--config", "-"])


if __name__ == "__main__":
    main()
