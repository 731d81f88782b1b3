"""Copy source_amplitude/schemas/*.json into the `schemas:` block at the end of manifest.yaml.

The JSON files are where a person edits. The block is what the Builder, the manifest runner and
PyAirbyte can load: they are given the manifest alone. What every stream has is added to each.
"""

import json
from copy import deepcopy
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parents[1] / "source_amplitude"
COMMON = {
    "project_name": {
        "description": "Project Name of the connection that wrote the row. Null without one.",
        "type": ["null", "string"],
    }
}
BLOCK = """
# Written by scripts/inline_schemas.py from schemas/*.json: edit there, then `make schemas`.
schemas:
"""


def inline_schemas(manifest: str, schemas: dict[str, object]) -> str:
    """The manifest's text with its `schemas:` block replaced, its last one by definition."""
    head = manifest.split(BLOCK)[0].rstrip("\n") + "\n"
    lines = yaml.safe_dump(schemas, sort_keys=False, width=96, allow_unicode=True).splitlines()
    return head + BLOCK + "".join(f"  {line}\n" if line else "\n" for line in lines)


def read_schemas() -> dict[str, object]:
    """Stream name -> JSON schema, as the files have them and with what is common to all."""
    schemas = {p.stem: json.loads(p.read_text()) for p in sorted(PACKAGE.glob("schemas/*"))}
    for schema in schemas.values():
        schema["properties"] |= deepcopy(COMMON)  # one object would become an alias
    return schemas


if __name__ == "__main__":
    path = PACKAGE / "manifest.yaml"
    path.write_text(inline_schemas(path.read_text(), read_schemas()))
