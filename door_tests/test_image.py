"""The image of the Dockerfile: built by buildah, run with a read-only root and as its own user.

The base image of metadata.yaml is in a registry that cannot be reached from everywhere, so a Debian
that is laid out alike stands in for it. It is made once and kept in .cache/image.
"""

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from door_tests.common import (
    REPOSITORY,
    Delivery,
    check_discover_and_read,
    image_layout,
    settings,
)
from sandbox import Sandbox
from unit_tests.installed import Connector

NEEDED = ("buildah", "debootstrap", "unshare")
MISSING = [tool for tool in NEEDED if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason=f"needs root and {', '.join(NEEDED)}; missing: {', '.join(MISSING) or 'root'}",
)
STORE = REPOSITORY / ".cache" / "image"
BASE, IMAGE = "localhost/python-connector-base:stand-in", "localhost/airbyte/source-amplitude:test"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
# What airbyte-cdk and its dependencies take up, with some room for their next versions.
MOST_MEGABYTES = 350

LIKE_THE_BASE = """
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
ln -s /usr/bin/python3 /usr/local/bin/python
ln -s /usr/bin/pip3 /usr/local/bin/pip
groupadd --system --gid 1000 airbyte
useradd --system --uid 1000 --gid 1000 --no-create-home --home-dir /nonexistent airbyte
mkdir -p /airbyte /secrets /config /nonexistent
chown airbyte:airbyte /airbyte /secrets /config /nonexistent
"""
# $1 is the root and $2 the one folder of the host that is seen in it, at the same place and
# read-only. Everything after that is what `env` takes.
READ_ONLY_ROOT = """
set -e
root=$1 folder=$2 at=$1$2
shift 2
mkdir -p "$at"
mount --bind "$root" "$root"
mount --bind "$folder" "$at"
mount -o remount,bind,ro "$at"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/var/tmp"
exec chroot --userspec=1000:1000 "$root" env -i "$@"
"""


def buildah(*arguments: str) -> str:
    done = subprocess.run(
        [
            *("buildah", "--root", str(STORE / "store"), "--runroot", str(STORE / "run")),
            *("--storage-driver", "vfs", *arguments),
        ],
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.strip()


def inspect(image: str) -> Any:
    return yaml.safe_load(buildah("inspect", "--type", "image", image))["Docker"]["config"]


@pytest.fixture(scope="module")
def base() -> str:
    if BASE.rpartition(":")[0] in buildah("images", "--format", "{{.Name}}").splitlines():
        return BASE
    root = STORE / "debian"
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    packages = "--include=python3,python3-pip,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    container = buildah("from", "scratch")
    buildah("add", container, str(root), "/")
    shutil.rmtree(root)
    buildah("run", container, "--", "sh", "-ec", LIKE_THE_BASE)
    if authorities := ssl.get_default_verify_paths().cafile:
        # The host's own, in case a proxy stands between it and the package index.
        inside = "/etc/ssl/certs/ca-certificates.crt"
        buildah("copy", container, authorities, inside)
        buildah("config", "--env", f"PIP_CERT={inside}", container)
    buildah("config", "--env", f"PATH={ENVIRONMENT['PATH']}:/usr/sbin:/sbin", container)
    buildah("commit", "--format", "docker", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="module")
def image(base: str) -> Iterator[str]:
    options = ("--format", "docker", "--pull-never", "--layers=false")
    buildah("bud", *options, "--build-arg", f"BASE_IMAGE={base}", "-t", IMAGE, str(REPOSITORY))
    yield IMAGE
    buildah("rmi", IMAGE)


@pytest.fixture(scope="module")
def root(image: str) -> Iterator[Path]:
    """The file system of a container of the image."""
    container = buildah("from", "--pull-never", image)
    yield Path(buildah("mount", container))
    buildah("rm", container)


def contained(root: Path, sandbox: Sandbox, folder: Path, entry: list[str]) -> list[str]:
    """A command that runs `entry` in `root`, of which nothing but /var/tmp can be written."""
    folder.chmod(0o755)
    authority = folder / "authority.pem"
    authority.write_bytes(Path(sandbox.env["REQUESTS_CA_BUNDLE"]).read_bytes())
    environment = {
        **ENVIRONMENT,
        **sandbox.env,
        "REQUESTS_CA_BUNDLE": str(authority),
        "TMPDIR": "/var/tmp",
    }
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY_ROOT, "sh"),
        *(str(root), str(folder)),
        "--chdir=/airbyte/integration_code",
        *(f"{name}={value}" for name, value in environment.items()),
        *entry,
    ]


def test_when_built_then_user_entrypoint_and_labels_are_those_airbyte_expects(image: str) -> None:
    config = inspect(image)
    metadata = yaml.safe_load((REPOSITORY / "metadata.yaml").read_text())["data"]
    assert config["User"] == "airbyte"
    assert config["Entrypoint"] == ["source-amplitude"]
    assert "AIRBYTE_ENTRYPOINT=source-amplitude" in config["Env"]
    assert config["Labels"]["io.airbyte.name"] == metadata["dockerRepository"]
    assert config["Labels"]["io.airbyte.version"] == metadata["dockerImageTag"]


def test_when_built_then_the_image_adds_the_cdk_to_its_base_and_little_else(
    base: str, image: str
) -> None:
    def size(name: str) -> float:
        [megabytes] = re.findall(r"^([\d.]+) MB$", buildah("images", "--format", "{{.Size}}", name))
        return float(megabytes)

    added = size(image) - size(base)
    print(f"The image adds {added:.0f} MB to its base.")
    assert 0 < added < MOST_MEGABYTES


def test_given_a_read_only_root_when_run_as_its_user_then_all_is_the_same(
    root: Path, sandbox: Sandbox, expected: Delivery, tmp_path: Path
) -> None:
    shell = contained(root, sandbox, tmp_path, ["sh", "-c"])
    probe = "id -u; touch /var/tmp/x && echo writable; touch /airbyte/x /tmp/x || echo read-only"
    told = subprocess.run([*shell, probe], text=True, capture_output=True)
    assert told.stdout.split() == ["1000", "writable", "read-only"]

    connector = Connector(
        tmp_path,
        sandbox,
        contained(root, sandbox, tmp_path, ["source-amplitude"]),
        **settings(sandbox),
    )
    [spec] = [m["spec"] for m in connector.run("spec").messages if m["type"] == "SPEC"]
    assert "api_key" in spec["connectionSpecification"]["required"]
    assert check_discover_and_read(connector) == expected


def test_given_the_two_files_in_the_folder_of_airbytes_recipe_when_run_then_all_is_the_same(
    root: Path, sandbox: Sandbox, expected: Delivery, tmp_path: Path
) -> None:
    recipe = root / "airbyte" / "integration_code"
    kept = recipe.rename(recipe.with_name("kept"))
    try:
        image_layout(recipe)
        command = contained(root, sandbox, tmp_path, ["python", "main.py"])
        assert check_discover_and_read(
            Connector(tmp_path, sandbox, command, **settings(sandbox))
        ) == (expected)
    finally:
        shutil.rmtree(recipe)
        kept.rename(recipe)
