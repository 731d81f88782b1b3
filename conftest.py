"""What the tests of the doors, in unit_tests/ and door_tests/, are held against."""

from collections.abc import Iterator

import pytest

from door_tests.common import Delivery, delivery, settings, small_sandbox
from sandbox import Sandbox
from unit_tests.installed import Connector


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with small_sandbox() as running:
        yield running


@pytest.fixture(scope="module")
def expected(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """What the installed command delivers; test_end_to_end.py compares that with the truth."""
    return delivery(
        Connector(tmp_path_factory.mktemp("package"), sandbox, **settings(sandbox)).read()
    )
