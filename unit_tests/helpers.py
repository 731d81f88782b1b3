"""What several test files need: the connector in this process, and archives as of Amplitude."""

import base64
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from airbyte_cdk.models import AirbyteStateMessage, FailureType, SyncMode
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput, read
from airbyte_cdk.test.mock_http import HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from airbyte_cdk.test.state_builder import StateBuilder

from source_amplitude import SourceAmplitude

API_KEY = "11112222333344445555666677778888"
SECRET_KEY = "99990000aaaabbbbccccddddeeeeffff"
AUTHORIZATION = {
    "Authorization": f"Basic {base64.b64encode(f'{API_KEY}:{SECRET_KEY}'.encode()).decode()}"
}


def config(**overrides: Any) -> dict[str, Any]:
    """A valid config: the three required fields, and what a test adds."""
    required = {
        "api_key": API_KEY,
        "secret_key": SECRET_KEY,
        "start_date": "2024-01-01T00:00:00Z",
    }
    return {**required, **overrides}


def read_stream(
    name: str,
    settings: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    sync_mode: SyncMode = SyncMode.incremental,
    expected: ExpectedOutcome = ExpectedOutcome.EXPECT_SUCCESS,
    beside: Sequence[str] = (),
) -> EntrypointOutput:
    """Sync one stream, with others ``beside`` it, through the CDK's entrypoint, in this process."""
    builder = CatalogBuilder().with_stream(name, sync_mode)
    for other in beside:
        builder = builder.with_stream(other, SyncMode.full_refresh)
    catalog = builder.build()
    states: list[AirbyteStateMessage] = []
    if state is not None:
        states = StateBuilder().with_stream_state(name, state).build()
    source = SourceAmplitude(catalog=catalog, config=settings, state=states)
    output = read(source, settings, catalog, states, expected_outcome=expected)
    if expected is ExpectedOutcome.EXPECT_SUCCESS:
        # The CDK prints the error, and goes on.
        assert not [error.trace.error.message for error in output.errors]  # type: ignore[union-attr]
    return output


def records(output: EntrypointOutput) -> list[Mapping[str, Any]]:
    return [message.record.data for message in output.records if message.record]


def logged(output: EntrypointOutput) -> list[str]:
    return [message.log.message for message in output.logs if message.log]


def printed_state(output: EntrypointOutput) -> dict[str, Any]:
    """The last state printed, as a plain object."""
    state = output.most_recent_state
    assert state
    assert state.stream_state
    return dict(vars(state.stream_state))


def final_state(output: EntrypointOutput) -> dict[str, Any]:
    """The last state printed, without what it began with: test_resuming.py is about that."""
    return without_beginning(printed_state(output))


def without_beginning(state: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: each for name, each in state.items() if name not in ("from", "assumed_from")}
    if "states" in kept:
        kept["states"] = [
            {**each, "cursor": without_beginning(each["cursor"])} for each in kept["states"]
        ]
    return kept


def first_error(output: EntrypointOutput) -> tuple[str, FailureType]:
    """Message and kind of the first error trace: later ones are summaries of the CDK. The shape of
    an answer, with which the message may end, is cut off."""
    error = output.errors[0].trace.error  # type: ignore[union-attr]
    assert error is not None
    assert error.message is not None
    assert error.failure_type is not None
    return error.message.partition(" Shape of the answer")[0], error.failure_type


def partition_states(output: EntrypointOutput) -> list[tuple[Mapping[str, Any], Any]]:
    """The last state printed of a stream with partitions: each of them, and its cursor."""
    return [(each["partition"], each["cursor"]) for each in final_state(output)["states"]]


def answer(data: Any, root_key: str = "data") -> HttpResponse:
    return HttpResponse(json.dumps({root_key: data}))


def refusal(status: int, **error: Any) -> HttpResponse:
    return HttpResponse(json.dumps({"error": {"http_code": status, **error}}), status)


def days(first: str, last: str) -> list[str]:
    """All days from the first to the last, as a dashboard answer lists them."""
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    return [(start + timedelta(days=n)).isoformat() for n in range((end - start).days + 1)]


def described(body: bytes, kind: str) -> str:
    """What messages say of a body that is not quoted."""
    return f"{kind} of {len(body):,} bytes with the checksum {zlib.crc32(body):08x}"


def json_lines(events: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def archive(members: Mapping[str, bytes]) -> bytes:
    """An export: a zip whose members are gzips of ``members``' values."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name), gzip.compress(content, mtime=0))
    return packed.getvalue()
