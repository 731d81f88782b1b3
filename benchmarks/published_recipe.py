"""Custom components of the baselines' manifests: see published_recipe.yaml and readers.py."""

import gzip
import io
import time
import zipfile
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson
import requests
from airbyte_cdk.sources.declarative.extractors.record_extractor import RecordExtractor
from airbyte_cdk.sources.declarative.transformations import RecordTransformation
from airbyte_cdk.sources.types import Config, StreamSlice, StreamState
from airbyte_cdk.utils.datetime_helpers import ab_datetime_parse

_TIMESTAMPS = (
    "server_upload_time",
    "server_received_time",
    "event_time",
    "client_event_time",
    "client_upload_time",
    "processed_time",
    "user_creation_time",
)
_SHARE = 64


@dataclass
class ParsedTimestamps(RecordTransformation):
    """Amplitude's timestamps in RFC 3339, by parsing each of them."""

    def transform(
        self,
        record: dict[str, Any],
        config: Config | None = None,
        stream_state: StreamState | None = None,
        stream_slice: StreamSlice | None = None,
    ) -> None:
        for name in _TIMESTAMPS:
            if record.get(name):
                record[name] = str(ab_datetime_parse(record[name]))


@dataclass
class PrebuiltRecords(RecordExtractor):
    """Records without any work on them: what is left is the CDK's own.

    The events of an archive's first file are parsed, and come once for every file, which are all
    as long. As in this connector, the printing thread gets its turn every few records.
    """

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            files = archive.infolist()
            lines = gzip.decompress(archive.read(files[0])).splitlines()
        prebuilt = [orjson.loads(line) for line in lines]
        for _ in files:
            for number, event in enumerate(prebuilt):
                if number % _SHARE == 0:
                    time.sleep(0)
                yield dict(event)
