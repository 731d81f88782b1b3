"""How events leave a process of our own: as finished lines, in batches, bounded in bytes.

The CDK hands records over one by one and serialises each when it is printed. By then an event has
grown cold in memory, and ten thousand may be waiting. Here, the thread that parses an event makes
its RECORD line at once, and some 128 KB of lines pass through the CDK as if they were one record.
Records, states, their counts and their order are what they are without it.
"""

import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from traceback import StackSummary, walk_tb
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests
from airbyte_cdk.entrypoint import AirbyteEntrypoint
from airbyte_cdk.logger import PRINT_BUFFER
from airbyte_cdk.models import AirbyteMessage, AirbyteRecordMessage, StreamDescriptor
from airbyte_cdk.sources.concurrent_source.concurrent_read_processor import ConcurrentReadProcessor
from airbyte_cdk.sources.concurrent_source.concurrent_source import ConcurrentSource
from airbyte_cdk.sources.concurrent_source.partition_generation_completed_sentinel import (
    PartitionGenerationCompletedSentinel,
)
from airbyte_cdk.sources.concurrent_source.stream_thread_exception import StreamThreadException
from airbyte_cdk.sources.connector_state_manager import HashableStreamDescriptor
from airbyte_cdk.sources.streams.concurrent.partitions.types import (
    PartitionCompleteSentinel,
    QueueItem,
)
from airbyte_cdk.sources.types import Record
from airbyte_cdk.sources.utils.record_helper import stream_data_to_airbyte_message
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from requests import PreparedRequest

from source_amplitude import components

try:  # a quarter faster, where it is installed
    from isal import igzip, igzip_lib
except ImportError:
    from gzip import GzipFile
else:

    class GzipFile(igzip.GzipFile):  # type: ignore[no-redef]
        """Raises what the standard library's raises for a damaged file."""

        def read(self, size: int | None = -1) -> bytes:
            try:
                return bytes(super().read(size))
            except igzip_lib.error as error:  # type: ignore[misc]  # its stub is too modest
                raise zlib.error(str(error)) from error


_BATCH_BYTES = 128 * 1024
_BYTES_IN_FLIGHT = 16 * 1024 * 1024
# No field of an event: the one record that passes through the CDK has its batch there.
_BATCH = "\0batch"
_STREAM = "events"


class UnwritableError(Exception):
    """Standard output can't be written. Nothing may be logged any more: it would wait for good."""


@contextmanager
def printing() -> Iterator[None]:
    """Keep what other threads log out of what is being printed.

    For good, if that ends half-way (a signal, a pipe that is closed, a full disk): the process
    ends, and a line that was cut off has to stay the last.

    Raises ``UnwritableError`` for an output that is full, with the reason.
    """
    PRINT_BUFFER.lock.acquire()
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwritableError(error.strerror) from error
    PRINT_BUFFER.lock.release()


class Room:
    """A bound on the bytes between the threads that read and the one that prints.

    The CDK's queue is bounded in records: when the destination pauses, memory would follow the
    size of the events.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self.freed = 0  # bytes, in all
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait for room. What is larger than all of it waits until it is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size

    def free(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self.freed += size
            self._changed.notify_all()


ROOM = Room(_BYTES_IN_FLIGHT)


@dataclass(frozen=True)
class Batch:
    """The RECORD lines of ``count`` events: of none, if all were left out by ``filter``."""

    lines: bytes
    count: int
    filter: components.EventFilter | None

    def print(self) -> None:
        """Write the lines to standard output, after all that has been printed so far."""
        out = sys.__stdout__.buffer  # type: ignore[union-attr]
        with printing():
            PRINT_BUFFER.flush()
            out.write(self.lines)
            out.flush()
        ROOM.free(len(self.lines))


class BatchingExtractor(components.ExportArchiveExtractor):
    """The events of its base in batches, ``{cursor_field: latest value, "\\0batch": Batch}``."""

    gunzip = GzipFile
    logs_unseen_by_window = False  # BatchingSource does so when the sync ends

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        lines: list[bytes] = []
        size, was_usual, is_empty = 0, True, True
        latest: Any = None
        try:
            # Of events that are left out, the cursor is shown the time all the same.
            for event in self._events(response):
                value = event.get(self.cursor_field)
                is_usual = _is_usual(value)
                # Values of the one usual form compare as text. Any other is shown to the CDK's
                # cursor by itself: it may read it, or log that it can't.
                belongs = (was_usual and is_usual) or value == latest
                if not is_empty and (size > _BATCH_BYTES or not belongs):
                    yield self._batch(lines, latest)
                    lines, size, is_empty = [], 0, True
                if is_empty or (is_usual and value > latest):
                    latest = value
                was_usual, is_empty = is_usual, False
                if self._filter is not None and isinstance(event, components.LeftOutEvent):
                    continue
                line = _record_line(event)
                lines.append(line)
                size += len(line)
        except Exception:
            if lines:
                yield self._batch(lines, latest)
            raise
        if not is_empty:
            yield self._batch(lines, latest)

    def _batch(self, lines: list[bytes], value: Any) -> MutableMapping[str, Any]:
        batch = Batch(b"".join(lines), len(lines), self._filter)
        ROOM.take(len(batch.lines))
        return {self.cursor_field: value, _BATCH: batch}


class InflatingErrorHandler(components.ExportErrorHandler):
    """Its base, three times as fast where members are unpacked to be checked."""

    gunzip = GzipFile


class BatchingEntrypoint(AirbyteEntrypoint):
    """Prints a batch in the place of its record, and counts it as the records it has."""

    def read(self, *args: Any) -> Iterable[AirbyteMessage]:
        for message in super().read(*args):
            if batch := _batch_of(message.record):
                batch.print()
                continue
            yield message
            if message.record and message.record.file_reference:
                # Nothing may follow for minutes, while the destination could take the file.
                with printing():
                    PRINT_BUFFER.flush()

    @staticmethod
    def handle_record_counts(
        message: AirbyteMessage, counts: defaultdict[HashableStreamDescriptor, float]
    ) -> AirbyteMessage:
        if batch := _batch_of(message.record):
            counts[HashableStreamDescriptor(_STREAM)] += batch.count - 1
        return AirbyteEntrypoint.handle_record_counts(message, counts)


class PlainSource(ConcurrentSource):
    """Each error is that of the selected stream, and none is a bare one of Python."""

    def _handle_item(
        self, item: QueueItem, processor: ConcurrentReadProcessor
    ) -> Iterable[AirbyteMessage]:
        if isinstance(item, StreamThreadException):
            item = StreamThreadException(
                _made_plain(item.exception, item.stream_name), item.stream_name
            )
        yield from super()._handle_item(item, processor)


def _made_plain(error: Exception, stream: str) -> AirbyteTracedException:
    """What ended a stream, as an error of this stream: also what the CDK names its parent for.

    An error of Python, which an answer of another form may lead to, becomes a message of ours, with
    the place where it was raised, but without its own words, as they may quote an answer.
    """
    if not isinstance(error, AirbyteTracedException):
        kind, frames = type(error).__name__, [*walk_tb(error.__traceback__)]
        values = [value for frame, _ in frames for value in frame.f_locals.values()]
        asked = [v.url for v in values if isinstance(v, requests.Response | PreparedRequest)]
        of = f" at the answer to {urlsplit(asked[-1] or '').path}" if asked else ""
        place = "".join(StackSummary.extract(iter(frames[-8:])).format())
        error = components.failure(
            f"The stream {stream} failed{of} in a way that nobody has foreseen ({kind}). Its state "
            "has not moved past what was read. Report it to the connector's maintainers."
        )
        error.internal_message = f"{kind}, raised at\n{place}"
    error._stream_descriptor = StreamDescriptor(name=stream)
    return error


class BatchingSource(PlainSource):
    """Counts a batch as the records it has in the log, too. One without any is for the cursor only,
    to which the thread that reads shows it.

    An outage is one error of its stream. Those of requests that were given up are logged at once,
    but shown when their stream is done, unless the error of an outage has told of them.
    """

    _filter: components.EventFilter | None = None

    @cached_property
    def _given_up(self) -> defaultdict[str, list[AirbyteTracedException]]:
        return defaultdict(list)

    @cached_property
    def _told(self) -> dict[str, int]:
        """How many more errors the one of an outage has told of, by the stream that it has ended:
        threads may be late to hand over theirs."""
        return {}

    def _handle_item(
        self, item: QueueItem, processor: ConcurrentReadProcessor
    ) -> Iterable[AirbyteMessage]:
        if isinstance(item, StreamThreadException) and self._is_for_later(item, processor):
            return
        yield from self._handle_now(item, processor)
        if isinstance(item, PartitionCompleteSentinel | PartitionGenerationCompletedSentinel):
            for name in filter(processor._is_stream_done, [*self._given_up]):
                for error in self._given_up.pop(name):
                    yield _made_plain(error, name).as_airbyte_message(None)

    def _is_for_later(self, item: StreamThreadException, processor: Any) -> bool:
        """Whether an error is not to be shown now. The CDK is told of its window all the same, by
        the sentinel that follows."""
        name, error = item.stream_name, item.exception
        waiting = self._given_up[name]
        if isinstance(error, components.OutageError):
            is_known = name in self._told
            if not is_known:
                self._told[name] = max(0, error.tells_of - len(waiting))
                del waiting[len(waiting) - min(error.tells_of, len(waiting)) :]
            return is_known
        if not components.was_given_up(error):
            return False
        self._logger.exception(f"Exception while syncing stream {name}", exc_info=error)
        processor._flag_exception(name, error)
        if self._told.get(name):
            self._told[name] -= 1
        else:
            waiting.append(error)
        return True

    def _handle_now(
        self, item: QueueItem, processor: ConcurrentReadProcessor
    ) -> Iterable[AirbyteMessage]:
        batch = item.data.get(_BATCH) if isinstance(item, Record) else None
        if batch:
            self._filter = batch.filter
        if not batch or batch.count:
            yield from super()._handle_item(item, processor)
        if batch and batch.count:
            processor._record_counter[_STREAM] += batch.count - 1
        elif self._filter and processor._is_stream_done(_STREAM):
            self._filter.log_unseen()
            self._filter = None  # nothing more to ask for at each record of other streams


def components_in_batches() -> ModuleType:
    """What the manifest is to find under the name of ``components.py``."""
    module = ModuleType(components.__name__)
    vars(module).update(
        vars(components),
        ExportArchiveExtractor=BatchingExtractor,
        ExportErrorHandler=InflatingErrorHandler,
    )
    return module


def _batch_of(record: AirbyteRecordMessage | None) -> Batch | None:
    return record.data.get(_BATCH) if record else None


def _is_usual(value: object) -> bool:
    """Whether it is a time of the form 2024-01-01T05:00:00.123456+00:00."""
    if type(value) is not str or len(value) != 32 or value[10] != "T" or value[-6:] != "+00:00":
        return False
    try:
        return bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _record_line(event: Mapping[str, Any]) -> bytes:
    record = {
        "stream": _STREAM,
        # The CDK leaves out what is null.
        "data": {name: value for name, value in event.items() if value is not None},
        "emitted_at": time.time_ns() // 1_000_000,
    }
    try:
        return orjson.dumps({"type": "RECORD", "record": record}, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        message = stream_data_to_airbyte_message(_STREAM, event)
        return f"{AirbyteEntrypoint.airbyte_message_to_string(message)}\n".encode()
