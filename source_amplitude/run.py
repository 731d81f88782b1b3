"""The console script ``source-amplitude``: Airbyte's four commands, and ``probe``."""

import gc
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from ast import literal_eval
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from airbyte_cdk.entrypoint import AirbyteEntrypoint
from airbyte_cdk.logger import PRINT_BUFFER
from airbyte_cdk.models import (
    AirbyteConnectionStatus,
    AirbyteMessage,
    AirbyteStateMessage,
    ConfiguredAirbyteCatalog,
    Status,
    StreamDescriptor,
)
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
    TestLimits,
)
from airbyte_cdk.utils.airbyte_secrets_utils import filter_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from airbyte_cdk.utils.yaml_loader import safe_load_yaml

from source_amplitude import components
from source_amplitude.delivery import (
    ROOM,
    BatchingEntrypoint,
    BatchingSource,
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


class SourceAmplitude(ConcurrentDeclarativeSource):
    """The connector as a class, as the CDK's own tools expect to find it in a Python package."""

    def __init__(
        self,
        catalog: ConfiguredAirbyteCatalog | None = None,
        config: Mapping[str, Any] | None = None,
        state: list[AirbyteStateMessage] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            source_config=safe_load_yaml(Path(__file__).with_name("manifest.yaml").read_text()),
            catalog=catalog or ConfiguredAirbyteCatalog(streams=[]),
            config=without_blanks(config or {}),
            state=state or [],
            **kwargs,
        )
        if self._config:
            refuse_invalid(self._config, self.resolved_manifest["spec"]["connection_specification"])

    def configure(self, config: Mapping[str, Any], temp_dir: str) -> Mapping[str, Any]:
        """The config; unlike the CDK's, it is not left in a file, with its keys, for nobody."""
        if not self._config:
            # `airbyte-cdk connector test` builds the source before it has a config.
            SourceAmplitude.__init__(self, config=config)
        return self._config

    def check(self, logger: logging.Logger, config: Mapping[str, Any]) -> AirbyteConnectionStatus:
        """As the CDK's, but a rate limit is no failure: who is told to wait has the right keys."""
        status = super().check(logger, config)
        if status.message:
            # The CDK gives it in quotes, and as if it were about the stream that was asked for.
            reason = str(literal_eval(status.message))
            status.message = re.sub(r"\AStream \w+ is not available: ", "", reason)
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
        yield from super().read(logger, config, catalog, state)
        if absent:
            raise components.refusal(f"Streams that could not be read: {', '.join(absent)}.")

    def _select_streams(self, streams: Any, configured_catalog: ConfiguredAirbyteCatalog) -> Any:
        """As the CDK's, but in the order of the manifest, whatever that of the catalog is."""
        selected = super()._select_streams(streams, configured_catalog)
        names = [stream.name for stream in streams]
        return sorted(selected, key=lambda stream: names.index(stream.name))

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


def run(args: list[str] | None = None) -> None:
    """Run one command of the Airbyte protocol; messages go to standard output.

    Ctrl-C, SIGTERM and a reader that goes away end it at once and without a word. The command
    ``probe`` is for people: see ``probe.py``.
    """
    args = sys.argv[1:] if args is None else args
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
    paths = {name: getattr(parsed, name, None) for name in ("catalog", "config", "state")}
    try:
        source = SourceAmplitude(
            catalog=SourceAmplitude.read_catalog(paths["catalog"]) if paths["catalog"] else None,
            config=SourceAmplitude.read_config(paths["config"]) if paths["config"] else None,
            state=SourceAmplitude.read_state(paths["state"]) if paths["state"] else None,
            config_path=paths["config"],
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
    source._concurrent_source.__class__ = BatchingSource
    yield from BatchingEntrypoint(source).run(parsed)
