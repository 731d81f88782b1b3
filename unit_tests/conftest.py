from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Back-off without its pauses."""
    with patch("time.sleep"):
        yield
