"""The console script ``source-amplitude``: Airbyte's four commands, and ``probe``."""

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from ast import literal_eval
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from airbyte_cdk.entrypoint import AirbyteEntrypoint
from airbyte_cdk.logger import PRINT_BUFFER
from airbyte_cdk.models import (
    AirbyteConnectionStatus,
    AirbyteMessage,
    AirbyteStateMessage,
    AirbyteStateMessageSerializer,
    ConfiguredAirbyteCatalog,
    Status,
    StreamDescriptor,
)
from airbyte_cdk.sources.concurrent_source.concurrent_read_processor import ConcurrentReadProcessor
from airbyte_cdk.sources.concurrent_source.stream_thread_exception import StreamThreadException
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
    TestLimits,
)
from airbyte_cdk.sources.declarative.incremental.concurrent_partition_cursor import (
    ConcurrentPerPartitionCursor,
)
from airbyte_cdk.sources.streams.concurrent.abstract_stream import AbstractStream
from airbyte_cdk.sources.streams.concurrent.cursor import ConcurrentCursor
from airbyte_cdk.sources.streams.concurrent.partitions.types import QueueItem
from airbyte_cdk.sources.streams.http.exceptions import BaseBackoffException
from airbyte_cdk.utils.airbyte_secrets_utils import filter_secrets, get_secrets, update_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from airbyte_cdk.utils.yaml_loader import safe_load_yaml

from source_amplitude import components
from source_amplitude.delivery import (
    ROOM,
    BatchingEntrypoint,
    BatchingSource,
    PlainSource,
    UnwritableError,
    components_in_batches,
    printing,
)
from source_amplitude.validation import refuse_invalid, without_blanks

# The name under which the manifest refers to the custom components: see components.py.
_COMPONENTS = "source_declarative_manifest.components"
sys.modules.setdefault(_COMPONENTS, components)

_ENDS = (signal.SIGINT, signal.SIGTERM)
_FLUSH_CHARACTERS = 64 * 1024
_SILENCE_SECONDS = 50.0
_PARTITIONS_PER_WINDOW = 100
# How the CDK begins what it says of attempts.
_USED_UP = ("Exhausted available request attempts", "API rate limit exceeded")


class SourceAmplitude(ConcurrentDeclarativeSource):
    """The connector as a class, as the CDK's own tools expect to find it in a Python package."""

    def __init__(
        self,
        catalog: ConfiguredAirbyteCatalog | None = None,
        config: Mapping[str, Any] | None = None,
        state: list[AirbyteStateMessage] | None = None,
        **kwargs: Any,
    ) -> None:
        self._unreadable: dict[str, AirbyteTracedException] = {}
        super().__init__(
            source_config=safe_load_yaml(
                Path(__file__).with_name("manifest.yaml").read_text(encoding="utf-8")
            ),
            catalog=catalog or ConfiguredAirbyteCatalog(streams=[]),
            config=without_blanks(config or {}),
            state=state or [],
            **kwargs,
        )
        self._concurrent_source.__class__ = PlainSource
        if self._config:
            refuse_invalid(self._config, self.resolved_manifest["spec"]["connection_specification"])

    @staticmethod
    def read_config(config_path: str) -> MutableMapping[str, Any]:
        """As the CDK's, but what is no config is a config error: `check` then has a status."""
        try:
            config = SourceAmplitude._read_json_file(config_path)
        except ValueError as error:
            raise components.refusal(
                f"The config can't be read: it is no JSON ({error})."
            ) from None
        if not isinstance(config, MutableMapping):
            raise components.refusal("The config can't be read: it is no JSON object.")
        return config

    @classmethod
    def read_state(cls, state_path: str) -> list[AirbyteStateMessage]:
        """As the CDK's, which reads it in the encoding of the locale."""
        saved = cls._read_json_file(state_path) if state_path else None
        states = [AirbyteStateMessageSerializer.load(each) for each in saved or []]
        if not all(each.stream or each.global_ or each.data for each in states):
            raise ValueError("a state is of no stream")
        return states

    @staticmethod
    def _read_json_file(file_path: str) -> Any:
        # With a byte order mark, too: editors of Windows leave one.
        return json.loads(Path(file_path).read_text(encoding="utf-8-sig"))

    def configure(self, config: Mapping[str, Any], temp_dir: str) -> Mapping[str, Any]:
        """The config; unlike the CDK's, it is not left in a file, with its keys, for nobody."""
        if not self._config:
            # `airbyte-cdk connector test` builds the source before it has a config.
            SourceAmplitude.__init__(self, config=config)
        return self._config

    def check(self, logger: logging.Logger, config: Mapping[str, Any]) -> AirbyteConnectionStatus:
        """As the CDK's, but a rate limit is no failure: who is told to wait has the right keys.

        Nor does a stream that is not asked end with a key that can't be sent.
        """
        if self._config.get("management_api_key"):
            _ = components.SecretiveBearerAuthenticator(self._config, "management_api_key").token
        status = super().check(logger, config)
        if status.message:
            status.message = str(literal_eval(status.message))  # the CDK gives it in quotes
            if "API rate limit exceeded" in status.message:  # what the CDK makes of HTTP 429
                logger.warning(
                    "The connection works. Something else is spending the rate limit of this "
                    "project just now (HTTP 429)."
                )
                return AirbyteConnectionStatus(status=Status.SUCCEEDED)
        return status

    def read(
        self,
        logger: logging.Logger,
        config: Mapping[str, Any],
        catalog: ConfiguredAirbyteCatalog,
        state: list[AirbyteStateMessage] | None = None,
    ) -> Iterator[AirbyteMessage]:
        """As the CDK's, but a selected stream that the source does not have is an error.

        The CDK calls it incomplete, says nothing, and succeeds. The other streams are read.
        """
        there = [*self._stream_configs(self._source_config), *self.dynamic_streams]
        names = {stream["name"] for stream in there}
        absent = [s.stream.name for s in catalog.streams if s.stream.name not in names]
        for name in absent:
            error = components.refusal(self._reason_of_absence(name))
            yield error.as_airbyte_message(StreamDescriptor(name=name))
        messages = super().read(logger, config, catalog, state)
        first = [*islice(messages, 1)]  # all streams are made now
        unreadable = [s.stream.name for s in catalog.streams if s.stream.name in self._unreadable]
        yield from (self._unreadable[name].as_airbyte_message() for name in unreadable)
        yield from first
        yield from messages
        if absent := [*absent, *unreadable]:
            raise components.refusal(f"Streams that could not be read: {', '.join(absent)}.")

    def _create_streams(
        self, selected_configs: list[dict[str, Any]], all_configs: list[dict[str, Any]]
    ) -> list[AbstractStream]:
        """As the CDK's, but without those whose saved state can't be read, and with states of
        partitions that follow their rows."""
        states = self._connector_state_manager.per_stream_states
        unmigrated, readable = dict(states), selected_configs
        while True:
            try:
                streams = super()._create_streams(readable, all_configs)
                break
            except AirbyteTracedException as error:
                if not error._stream_descriptor:
                    raise
                name = error._stream_descriptor.name
                self._unreadable[name] = error
                readable = [each for each in readable if each["name"] != name]
                states.update(unmigrated)
        for stream in streams:
            if type(stream.cursor) is ConcurrentPerPartitionCursor:
                cursor: Any = stream.cursor
                cursor.__class__ = PartitionsCursor
                saved = self._connector_state_manager.get_stream_state(stream.name, None)
                cursor.new_partition = saved.get(components.NEW_PARTITION, {})
        return streams

    def _reason_of_absence(self, name: str) -> str:
        conditional = [s for s in self.resolved_manifest["streams"] if "condition" in s]
        if any(stream["name"] == name for group in conditional for stream in group["streams"]):
            return (
                f"The stream {name} needs the Management API Key (management_api_key), which is "
                "not set. Enter it, or deselect the stream."
            )
        if name.startswith("report_"):
            return (
                f"The report of the stream {name} is not in the field Reports (reports), or not "
                "any more. Add it again, or deselect the stream."
            )
        return (
            f"The stream {name} is not one of this connector's: it was selected with another "
            "version. Refresh the source's schema, and deselect the stream."
        )


class PartitionsCursor(ConcurrentPerPartitionCursor):
    """As the CDK's, which prints a state every ten minutes: here, one follows each window's rows.

    One has all partitions, some 150 bytes for each. Above a hundred of them, it follows as many
    windows as there are hundreds, so that states take no more than 15 KB for each window.
    """

    new_partition: Mapping[str, Any] = {}
    _unprinted = 0

    def _throttle_state_message(self) -> float | None:
        self._unprinted += 1
        if self._unprinted * _PARTITIONS_PER_WINDOW < len(self._cursor_per_partition):
            return super()._throttle_state_message()
        self._unprinted = 0
        return time.time()

    def _create_cursor(
        self, cursor_state: Any, runtime_lookback_window: int = 0
    ) -> ConcurrentCursor:
        """As the CDK's; what a new partition begins with is noted in its state."""
        return super()._create_cursor(cursor_state or self.new_partition, runtime_lookback_window)


def run(args: list[str] | None = None) -> None:
    """Run one command of the Airbyte protocol; messages go to standard output.

    Ctrl-C, SIGTERM and a reader that goes away end it at once and without a word. The command
    ``probe`` is for people: see ``probe.py``.
    """
    args = sys.argv[1:] if args is None else args
    for stream in (sys.__stdout__, sys.__stderr__):  # whatever the locale is
        stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if args[:1] == ["probe"]:
        from source_amplitude.probe import probe

        try:
            sys.exit(probe(args[1:]))
        except KeyboardInterrupt:
            sys.exit(130)
    # Objects of the start-up are for good, and those of a record live briefly.
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    for number in _ENDS:
        signal.signal(number, _end)
    sys.modules[_COMPONENTS] = components_in_batches()
    messages = _messages(args)
    try:
        # What airbyte_cdk.entrypoint.launch does as well, but without a way to end it.
        PRINT_BUFFER.__enter__()
        unflushed, printed = 0, [0]
        threading.Thread(target=_break_silence, args=(printed,), daemon=True).start()
        for message in messages:
            if not message.startswith('{"type":"RECORD"'):
                # The CDK masks logs, but not all that it says of an error.
                message = filter_secrets(message)
            # The buffer itself goes by time alone, and holds four bytes for a character.
            unflushed += len(message)
            with printing():
                print(f"{message}\n", end="")
                if unflushed > _FLUSH_CHARACTERS:
                    PRINT_BUFFER.flush()
                    unflushed = 0
            printed[0] += 1
        PRINT_BUFFER.__exit__(None, None, None)
    except (KeyboardInterrupt, BrokenPipeError) as ended:
        # Not a byte more: a line that was cut off here has to stay the last, or a state that
        # follows it would speak for a record that nobody could read.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
        with suppress(RuntimeError):  # of a generator that has more to say
            messages.close()  # removes the CDK's temporary folder
        # Readers may be waiting for Amplitude for minutes; what they hold vanishes with them.
        number = signal.SIGPIPE if isinstance(ended, BrokenPipeError) else ended.args[0]
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    except UnwritableError as error:
        _exit_unwritten(error)
    except SystemExit:
        PRINT_BUFFER.flush()
        raise
    except BaseException:
        # Not raised: at its exit, Python waits for readers, which may be waiting for room.
        _exit_with_error()


def _exit_with_error() -> NoReturn:
    """Print what is left, the error included, and end at once."""
    try:
        PRINT_BUFFER.flush()
        sys.excepthook(*sys.exc_info())
        PRINT_BUFFER.flush()
    except OSError as error:
        _exit_unwritten(error.strerror)
    os._exit(1)


def _exit_unwritten(reason: object) -> NoReturn:
    message = f"Standard output can't be written: {reason}.\n"
    os.write(sys.__stderr__.fileno(), message.encode())  # type: ignore[union-attr]
    os._exit(1)


def _break_silence(printed: list[int]) -> None:
    """Say so when nothing is printed for a while: the CDK waits for the API budget in silence."""
    while True:
        before = printed[0], ROOM.freed
        time.sleep(_SILENCE_SECONDS)
        if (printed[0], ROOM.freed) == before:
            logging.getLogger("airbyte").info(
                "Still at work: waiting for Amplitude, or for its rate limit."
            )


def _end(number: int, _: object) -> None:
    # Wrappers forward Ctrl-C: a second signal must not end the ending.
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _messages(args: list[str]) -> Generator[str, None, None]:
    parsed = AirbyteEntrypoint.parse_args(args)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        message = f"There is no folder for temporary files: {error.strerror}. Point TMPDIR to one."
        trace = components.failure(message).as_airbyte_message()
        yield AirbyteEntrypoint.airbyte_message_to_string(trace)
        sys.exit(1)
    try:
        given = {
            name: getattr(SourceAmplitude, f"read_{name}")(path)
            for name in ("catalog", "config", "state")
            if (path := getattr(parsed, name, None))
        }
        source = SourceAmplitude(
            **given,
            # `check` asks once: who waits for its answer can ask again.
            limits=TestLimits() if parsed.command == "check" else None,
        )
    except Exception as error:
        # The CDK's own handler of exceptions is not there before the source is.
        traced = error
        if not isinstance(traced, AirbyteTracedException):
            reason = (str(error) or "no reason given").splitlines()[0].rstrip(":")
            message = f"Config, catalog or state can't be read ({type(error).__name__}: {reason})."
            traced = AirbyteTracedException.from_exception(error, message=message)
        yield AirbyteEntrypoint.airbyte_message_to_string(traced.as_airbyte_message())
        if parsed.command != "check" or not (status := traced.as_connection_status_message()):
            sys.exit(1)
        yield AirbyteEntrypoint.airbyte_message_to_string(status)
        return
    # The CDK reads each file once more, which a pipe does not give twice.
    for name, content in given.items():
        setattr(source, f"read_{name}", partial(_given, content))
    source._concurrent_source.__class__ = _Source
    yield from _Entrypoint(source).run(parsed)


def _given(content: Any, _: str) -> Any:
    return content


class _Source(BatchingSource):
    """Names a request whose attempts are used up: the CDK says neither stream nor endpoint."""

    def _handle_item(
        self, item: QueueItem, processor: ConcurrentReadProcessor
    ) -> Iterable[AirbyteMessage]:
        if isinstance(item, StreamThreadException):
            _name_request(item.exception, item.stream_name)
        yield from super()._handle_item(item, processor)


def _name_request(error: Exception, stream: str) -> None:
    cause = getattr(error, "_exception", None)
    if not (isinstance(error, AirbyteTracedException) and isinstance(cause, BaseBackoffException)):
        return
    if (error.message or "").startswith(_USED_UP) and cause.request is not None:
        url = urlsplit(cause.request.url or "")
        # Of a storage, the path is nobody's business.
        asked = url.path if url.path.startswith("/api/") else url.hostname
        said = f"{asked} was asked as often as it may be. {cause}"
        error.message = f"The stream {stream} could not be read: {said}"


class _Entrypoint(BatchingEntrypoint):
    """Hides secrets in every form, but for those that are too short: a letter is in each word."""

    @staticmethod
    def set_up_secret_filter(
        config: Mapping[str, Any], connection_specification: Mapping[str, Any]
    ) -> None:
        update_secrets([])
        for secret in get_secrets(connection_specification, config):
            components.keep_secret(str(secret))
