"""One sync of the installed connector into a DuckDB file, through PyAirbyte."""

import io
import logging
import os
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TextIO

_CONNECTOR = "source-amplitude"


class SyncError(Exception):
    """A sync that cannot be done; the message is one a person can act on."""


class Count(NamedTuple):
    """Rows of a table: those the sync has just written or rewritten, and all of them."""

    moved: int
    held: int


def sync(config: Mapping[str, Any], db: Path, streams: Sequence[str] = ()) -> dict[str, Count]:
    """Sync `streams` into the tables of `db`, going on from where it left off.

    None are all but those of files, which no table takes. Prints a line per stream as it arrives.
    Requests go where the environment leads them.

    Raises:
        SyncError: the config was refused, a stream is unknown, or reading has failed; the message
            is the connector's own where it has one.
    """
    ab = import_pyairbyte()
    _check_database(db)
    executable = Path(sysconfig.get_path("scripts"), _CONNECTOR)
    if not executable.exists():
        raise SyncError(f"{executable} is missing. Install it: pip install --editable .")
    source = ab.get_source(
        _CONNECTOR, config=dict(config), local_executable=executable, install_if_missing=False
    )
    log = _ConnectorLog()
    logger = logging.getLogger(f"airbyte.{_CONNECTOR}")
    logger.addHandler(log)
    started = datetime.now(timezone.utc).replace(tzinfo=None)
    try:
        source.check()
        if unknown := set(streams) - set(source.get_available_streams()):
            raise SyncError(
                f"No such stream: {', '.join(sorted(unknown))}. "
                f"There are {', '.join(source.get_available_streams())}."
            )
        tables = [s.name for s in source.discovered_catalog.streams if not s.is_file_based]
        source.select_streams(list(streams) or tables)
        with (
            tempfile.TemporaryDirectory() as batches,
            ab.caches.DuckDBCache(db_path=db, cache_dir=Path(batches)) as cache,
            redirect_stdout(_WithoutTypeNotes(sys.stdout)),
        ):
            # The connector has validated the config, in words that never repeat a secret.
            source.read(cache, skip_validation=True)
    except ab.exceptions.PyAirbyteError as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from None
        reason = (error.context or {}).get("failure_reason") or log.first_error
        raise SyncError(str(reason or error.get_message()).strip("'")) from error
    finally:
        logger.removeHandler(log)
    return _count(db, source.get_selected_streams(), started)


def import_pyairbyte() -> Any:
    """PyAirbyte, set to stay off the network but for the connector.

    Raises:
        SyncError: it is not installed.
    """
    # PyAirbyte leaves the config, keys included, in a file there that everybody may read.
    private = Path(".cache", "private").absolute()
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(AIRBYTE_OFFLINE_MODE="1", DO_NOT_TRACK="1", AIRBYTE_TEMP_DIR=str(private))
    # Google's libraries, imported by PyAirbyte, announce the end of every Python version.
    warnings.filterwarnings("ignore", "You are using a .*Python version", FutureWarning)
    try:
        import airbyte
    except ImportError as error:
        if sys.version_info >= (3, 13):
            advice = "it has no release for this Python: make clean; make PYTHON=python3.12 demo"
        else:
            advice = "install it: pip install --group demo"
        raise SyncError(f"PyAirbyte is needed ({error}); {advice}") from error
    return airbyte


def _check_database(db: Path) -> None:
    import duckdb

    db.parent.mkdir(parents=True, exist_ok=True)
    try:
        duckdb.connect(str(db)).close()
    except duckdb.Error as error:
        raise SyncError(f"{db} cannot be opened: {str(error).splitlines()[0]}") from error


def _count(db: Path, streams: Sequence[str], since: datetime) -> dict[str, Count]:
    import duckdb

    with duckdb.connect(str(db), read_only=True) as connection:
        counts = {}
        for stream in streams:
            row = connection.execute(
                f'SELECT count(*) FILTER (_airbyte_extracted_at >= ?), count(*) FROM "{stream}"',
                [since],
            ).fetchone()
            counts[stream] = Count(*row or (0, 0))
    return counts


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a Ctrl-C lies behind an error: PyAirbyte reports it as a failed connector."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class _WithoutTypeNotes(io.TextIOBase):
    """Standard output without PyAirbyte's note, printed many times over, on a column of two types.

    Amplitude sends such values; they become text.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._line = ""
        self._in_note = False

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            # The note is wrapped to the width of the terminal; its end is that of a schema.
            self._in_note |= line.startswith("Could not determine airbyte type from JSON schema")
            if not self._in_note:
                self._out.write(f"{line}\n")
            self._in_note &= not line.endswith("}")
        return len(text)


class _ConnectorLog(logging.Handler):
    """Shows what a person wants to see of the connector's log, and keeps its first error."""

    _FINISHED = re.compile(r"Read (\d+) records from (\w+) stream")

    def __init__(self) -> None:
        super().__init__()
        self.first_error: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.ERROR:
            self.first_error = self.first_error or message
        elif match := self._FINISHED.match(message):
            print(f"  {match[2]}: {int(match[1]):,} record{'s' * (match[1] != '1')}")
