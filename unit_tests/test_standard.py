"""Airbyte's standard connector tests, pointed at the two files and answered by the sandbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from airbyte_cdk.test.models import ConnectorTestScenario
from airbyte_cdk.test.standard_tests import DeclarativeSourceTestSuite

from sandbox import Project, Sandbox
from unit_tests.installed import PACKAGE

pytest_plugins = ["airbyte_cdk.test.standard_tests.pytest_hooks"]
SANDBOX = Sandbox(Project(events_per_hour=5))


class TestStandard(DeclarativeSourceTestSuite):
    manifest_yaml_path = PACKAGE / "manifest.yaml"
    components_py_path = PACKAGE / "components.py"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _sandbox(cls) -> Iterator[None]:
        with SANDBOX, pytest.MonkeyPatch.context() as environment:
            for name, value in SANDBOX.env.items():
                environment.setenv(name, value)
            # The suite sets it for good otherwise.
            environment.setenv("AIRBYTE_ENABLE_UNSAFE_CODE", "true")
            yield

    @classmethod
    def get_connector_root_dir(cls) -> Path:
        return PACKAGE.parent

    @classmethod
    def get_scenarios(cls) -> list[ConnectorTestScenario]:
        """Those of acceptance-test-config.yml, with the sandbox's keys for a real project's."""
        return [
            scenario.model_copy(update={"config_dict": SANDBOX.config()})
            if scenario.config_path == Path("secrets/config.json")
            else scenario
            for scenario in super().get_scenarios()
        ]
