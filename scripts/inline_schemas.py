"""Copy source_amplitude/schemas/*.json into the `schemas:` block at the end of manifest.yaml.

The JSON files are where a person edits. The block is what the Builder, the manifest runner and
PyAirbyte can load: they are given the manifest alone.
"""

import json
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parents[1] / "source_amplitude"
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
    """Stream name -> JSON schema, as the files have them."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(PACKAGE.glob("schemas/*"))}


if __name__ == "__main__":
    path = PACKAGE / "manifest.yaml"
    path.write_text(inline_schemas(path.read_text(), read_schemas()))
