"""Print what poetry.lock has of some dependency groups, as requirements with hashes for pip.

`make` installs the groups main, dev and demo, the image main alone. Poetry itself would be fifty
packages more, and would have to be installed as well.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

LOCK = Path(__file__).parents[1] / "poetry.lock"


def requirements(lock: dict[str, Any], groups: Sequence[str]) -> Iterator[str]:
    """A line for each locked package of any of the groups, its markers and hashes included."""
    for package in lock["package"]:
        markers = package.get("markers", "")
        wanted = [group for group in groups if group in package["groups"]]
        if isinstance(markers, dict):
            each = [markers.get(group, "") for group in wanted]
            markers = " or ".join(f"({marker})" for marker in each) if all(each) else ""
        if wanted:
            hashes = [f"--hash={file['hash']}" for file in package["files"]]
            requirement = f"{package['name']}=={package['version']}"
            yield " ".join([requirement, *([";", markers] if markers else []), *hashes])


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.loads(LOCK.read_text(encoding="utf-8")), sys.argv[1:])))
