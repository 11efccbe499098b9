"""What every test of memory may use."""

import pytest
from memory.filled import IDENTITY

from tww_ros.memory.store import Store


@pytest.fixture
def store(tmp_path):
    """An empty memory in a folder."""
    with Store.open(tmp_path / 'memory', IDENTITY) as opened:
        yield opened
