"""Property-based tests of the export: what is sent comes out, and damage never goes unnoticed."""

import gzip
import io
import json
import os
import re
import zipfile
from typing import Any

from airbyte_cdk.sources.streams.http.exceptions import DefaultBackoffException
from airbyte_cdk.sources.streams.http.request_window_split_exception import (
    RequestWindowSplitRequiredException,
)
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from source_amplitude.components import ExportArchiveExtractor, shape
from source_amplitude.delivery import ROOM, BatchingExtractor
from unit_tests.helpers import json_lines
from unit_tests.test_components import extract, zip64

# `make fuzz` looks for longer.
settings.register_profile("suite", max_examples=150, deadline=None)
settings.register_profile(
    "fuzz", max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck)
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "suite")
settings.load_profile(PROFILE)
FUZZES = PROFILE == "fuzz"

text = st.text(st.characters(exclude_categories=["Cs"]))
# Integers of 64 bits: larger ones become doubles, as documented.
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
names = text.filter(lambda name: not name.endswith("_time"))
events = st.dictionaries(names, values, min_size=1, max_size=8)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"])
packings = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "zip_method": st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
        "gzip_level": st.integers(0, 9),
        "gzips_per_member": st.integers(1, 3),
        "has_bom": st.booleans(),
        "ends_with_newline": st.booleans(),
    }
)


def pack(members: list[list[dict[str, Any]]], line_end: bytes, packing: dict[str, Any]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing["zip_method"]) as zipped:
        for number, member in enumerate(members):
            lines = [
                json.dumps(event, ensure_ascii=packing["ensure_ascii"]).encode() for event in member
            ]
            content = line_end.join(lines)
            if packing["ends_with_newline"]:
                content += line_end
            if packing["has_bom"] and lines:
                content = b"\xef\xbb\xbf" + content
            size = -(-len(content) // packing["gzips_per_member"]) or 1
            pieces = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
            zipped.writestr(
                f"187520/187520_2024-01-01_7#{number}.json.gz",
                b"".join(gzip.compress(piece, packing["gzip_level"]) for piece in pieces),
            )
    return packed.getvalue()


@given(st.lists(st.lists(events, max_size=5), max_size=4), line_ends, packings)
def test_given_any_events_in_any_encoding_when_extracted_then_they_come_out_equal(
    members: list[list[dict[str, Any]]], line_end: bytes, packing: dict[str, Any]
) -> None:
    extracted = extract(pack(members, line_end, packing))
    expected = [event for member in members for event in member]
    assert json.dumps(extracted) == json.dumps(expected)


FIELD_NAMES = st.sampled_from(["field", "name"])
DATES = st.sampled_from(["2024-01-01", "2024-01-01T05:00:00Z", "Jan 1, 2024", "20240101"])
answers: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | text | DATES,
    lambda inner: st.lists(inner) | st.dictionaries(FIELD_NAMES | DATES, inner),
)
WORDS = "field name text date Mon T Z boolean integer number null more"


@given(answers)
def test_given_any_answer_when_its_shape_is_shown_then_no_text_or_number_of_it_is(
    answer: Any,
) -> None:
    shown = shape(answer)
    assert len(shown) <= 2_000
    assert re.fullmatch(r"[\w\[\]{}():*,./+ -]*", shown, re.ASCII)
    assert {*re.findall("[A-Za-z_]+", shown)} <= {*WORDS.split()}


SENT = [[{"uuid": str(number), "n": [number] * 20} for number in range(50)]] * 3
SOUND = pack(
    SENT,
    b"\n",
    {
        "ensure_ascii": True,
        "zip_method": zipfile.ZIP_STORED,
        "gzip_level": 6,
        "gzips_per_member": 1,
        "has_bom": False,
        "ends_with_newline": True,
    },
)
SOUND_ZIP64 = zip64({str(n): json_lines(member) for n, member in enumerate(SENT)}, masks=True)
places = st.integers(0, min(len(SOUND), len(SOUND_ZIP64)) - 1)
# Counted from the end as well, where the directory is.
any_places = places | places.map(lambda place: -1 - place) | st.integers(-500, -1)


def events_of(extracted: list[Any]) -> list[Any]:
    """The records themselves, or those whose lines are in batches."""
    if "uuid" in extracted[0]:
        return extracted
    batches = [record["\0batch"] for record in extracted]
    ROOM.free(sum(len(batch.lines) for batch in batches))
    lines = b"".join(batch.lines for batch in batches).splitlines()
    return [json.loads(line)["record"]["data"] for line in lines]


@given(
    st.sampled_from([SOUND, SOUND_ZIP64]),
    st.lists(st.tuples(any_places, st.integers(0, 255)), max_size=3),
    st.none() | places,
    st.binary(max_size=20),
)
def test_given_any_mutation_of_an_archive_when_extracted_then_events_are_right_or_it_fails(
    sound: bytes, flips: list[tuple[int, int]], cut: int | None, tail: bytes
) -> None:
    body = bytearray(sound)
    for place, value in flips:
        body[place] = value
    mutated = bytes(body[:cut]) + tail
    for extractor in (ExportArchiveExtractor, BatchingExtractor):
        try:
            extracted = extract(mutated, extractor)
        except (
            AirbyteTracedException,
            DefaultBackoffException,
            RequestWindowSplitRequiredException,
        ):
            continue
        assert events_of(extracted) == [event for member in SENT for event in member]
