"""Fixtures of the tests of builds: no process of a test outlives it."""

from collections.abc import Iterator

import pytest
from victims import kill_those_left


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    kill_those_left()
