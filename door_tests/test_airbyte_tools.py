"""Airbyte's own command line and checks, on the project as it is."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from door_tests.common import REPOSITORY, small_sandbox
from unit_tests.installed import BIN

QA = REPOSITORY.parent / "shared" / "tools" / "qa.sh"


def test_given_a_folder_of_the_connectors_name_when_airbyte_cdk_tests_it_then_all_passes(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "source-amplitude"
    for name in ("source_amplitude", "integration_tests"):
        shutil.copytree(REPOSITORY / name, folder / name)
    # pyproject.toml turns warnings about the catalog into errors.
    for name in ("metadata.yaml", "acceptance-test-config.yml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "secrets").mkdir()
    with small_sandbox() as sandbox:
        (folder / "secrets" / "config.json").write_text(json.dumps(sandbox.config()))
        done = subprocess.run(
            [str(BIN / "airbyte-cdk"), "connector", "test", str(folder)],
            env={**os.environ, **sandbox.env, "PYTHONPATH": str(folder)},
            cwd=tmp_path,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert sandbox.requests
    summary = done.stdout.splitlines()[-1]
    assert int(re.findall(r"(\d+) passed", summary)[0]) >= 7, summary


@pytest.mark.skipif(not QA.exists(), reason="Airbyte's checks are set up beside the project only")
def test_given_airbytes_quality_checks_when_run_then_only_the_dockerfile_is_objected_to() -> None:
    done = subprocess.run(["bash", str(QA), str(REPOSITORY)], text=True, capture_output=True)
    results = re.findall(r"^(PASSED|FAILED|ERROR)\s+(\w+)", done.stdout, re.MULTILINE)
    assert "ops validators: ok" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(results) > 15
    assert [name for result, name in results if result != "PASSED"] == [
        # It wants the base image in metadata.yaml, where it is too, and no Dockerfile.
        "CheckConnectorUsesPythonBaseImage"
    ]
