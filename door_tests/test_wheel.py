"""The wheel that is published, in an empty environment of every Python it names."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from door_tests.common import (
    REPOSITORY,
    Delivery,
    check_discover_and_read,
    settings,
)
from sandbox import Sandbox
from unit_tests.installed import PACKAGE, Connector


def interpreter(version: str) -> Path:
    """A Python of this version that runs: ours, that of the path, or one that pyenv keeps.

    pyenv's own commands on the path do not count: they refuse versions that are not selected.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    for found in (
        Path(sys.executable),
        *([Path(on_path)] if on_path else []),
        *sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True),
    ):
        asked = [str(found), "-c", "import sys, ensurepip; print(*sys.version_info[:2], sep='.')"]
        answer = subprocess.run(asked, capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip() == version:
            return found
    pytest.skip(f"there is no Python {version} on this machine")


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY))
    [built] = folder.glob("*.whl")
    return built


def test_when_built_then_the_wheel_holds_the_connector_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert (
            archive.read("source_amplitude/manifest.yaml")
            == (REPOSITORY / "source_amplitude" / "manifest.yaml").read_bytes()
        )
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert sorted(names) == sorted(
        [
            *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
            *(f"source_amplitude/schemas/{file.name}" for file in (PACKAGE / "schemas").iterdir()),
            "source_amplitude/__init__.py",
            "source_amplitude/components.py",
            "source_amplitude/delivery.py",
            "source_amplitude/manifest.yaml",
            "source_amplitude/probe.py",
            "source_amplitude/run.py",
            "source_amplitude/validation.py",
        ]
    )


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_given_an_empty_environment_when_the_wheel_is_installed_then_all_is_the_same(
    wheel: Path, sandbox: Sandbox, expected: Delivery, tmp_path: Path, version: str
) -> None:
    environment = tmp_path / "venv"
    subprocess.run(
        [interpreter(version), "-m", "venv", "--without-pip", environment],
        check=True,
    )
    pip("--python", str(environment / "bin" / "python"), "install", str(wheel))
    command = [str(environment / "bin" / "source-amplitude")]
    connector = Connector(tmp_path, sandbox, command, env={"PYTHONPATH": ""}, **settings(sandbox))

    [spec] = [m["spec"] for m in connector.run("spec").messages if m["type"] == "SPEC"]
    assert "api_key" in spec["connectionSpecification"]["required"]
    assert check_discover_and_read(connector) == expected
