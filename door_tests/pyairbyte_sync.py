"""`python -m door_tests.pyairbyte_sync settings.json`: check and read, as PyAirbyte's users do."""

import json
import os
import sys
from pathlib import Path

from demo.sync import import_pyairbyte


def main(settings_file: Path) -> None:
    settings = json.loads(settings_file.read_text())
    ab = import_pyairbyte()
    source = ab.get_source("source-amplitude", config=settings["config"], **settings["source"])
    # Not earlier: installing from pip_url needs the real network.
    os.environ.update(settings["environment"])
    source.check()
    streams = source.discovered_catalog.streams
    source.select_streams([stream.name for stream in streams if not stream.is_file_based])
    with ab.caches.DuckDBCache(db_path=settings["db"], cache_dir=settings_file.parent) as cache:
        for _ in range(settings["times"]):
            source.read(cache, write_strategy=settings["strategy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
