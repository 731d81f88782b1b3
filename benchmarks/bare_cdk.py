"""The CDK's bare start-up: import its entrypoint, build the source of a trivial manifest, end."""

from airbyte_cdk import entrypoint  # noqa: F401 (importing it is what is measured)
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
)

_MANIFEST = {
    "version": "7.0.0",
    "type": "DeclarativeSource",
    "check": {"type": "CheckStream", "stream_names": ["nothing"]},
    "streams": [
        {
            "type": "DeclarativeStream",
            "name": "nothing",
            "retriever": {
                "type": "SimpleRetriever",
                "requester": {"type": "HttpRequester", "url": "https://example.com"},
                "record_selector": {
                    "type": "RecordSelector",
                    "extractor": {"type": "DpathExtractor", "field_path": []},
                },
            },
        }
    ],
}

if __name__ == "__main__":
    ConcurrentDeclarativeSource(catalog=None, config=None, state=None, source_config=_MANIFEST)
