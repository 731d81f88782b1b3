"""The console script ``source-amplitude``: ``spec``, ``check``, ``discover``, ``read``."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airbyte_cdk.entrypoint import AirbyteEntrypoint, launch
from airbyte_cdk.models import AirbyteMessage, AirbyteStateMessage, ConfiguredAirbyteCatalog
from airbyte_cdk.sources.declarative.yaml_declarative_source import YamlDeclarativeSource
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from source_amplitude import components

# The name under which the manifest refers to the custom components: see components.py.
sys.modules.setdefault("source_declarative_manifest.components", components)


class SourceAmplitude(YamlDeclarativeSource):
    """The connector as a class, as the CDK's own tools expect to find it in a Python package."""

    def __init__(
        self,
        catalog: ConfiguredAirbyteCatalog | None = None,
        config: Mapping[str, Any] | None = None,
        state: list[AirbyteStateMessage] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            path_to_yaml=str(Path(__file__).with_name("manifest.yaml")),
            catalog=catalog,
            config=config,
            state=state,
            **kwargs,
        )


def run(args: list[str] | None = None) -> None:
    """Run one command of the Airbyte protocol; messages go to standard output."""
    args = sys.argv[1:] if args is None else args
    parsed = AirbyteEntrypoint.parse_args(args)
    paths = {name: getattr(parsed, name, None) for name in ("catalog", "config", "state")}
    try:
        source = SourceAmplitude(
            catalog=SourceAmplitude.read_catalog(paths["catalog"]) if paths["catalog"] else None,
            config=SourceAmplitude.read_config(paths["config"]) if paths["config"] else None,
            state=SourceAmplitude.read_state(paths["state"]) if paths["state"] else None,
            config_path=paths["config"],
        )
    except AirbyteTracedException as error:
        _print(error.as_airbyte_message())
        if parsed.command == "check" and (status := error.as_connection_status_message()):
            _print(status)
            return
        sys.exit(1)
    launch(source, args)


def _print(message: AirbyteMessage) -> None:
    print(AirbyteEntrypoint.airbyte_message_to_string(message), flush=True)
