from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Back-off without its pauses."""

    def sleep(seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError("sleep length must be non-negative")

    with patch("time.sleep", sleep):
        yield
