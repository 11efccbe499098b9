"""kill -9 at random moments: what was told as stored is there. The loop: benchmarks/_crash.py."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def crash():
    """The module benchmarks/_crash.py, with its neighbours on the path while it is loaded."""
    spec = importlib.util.spec_from_file_location('benchmarks._crash', BENCHMARKS / '_crash.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def one_thread():
    """A fork has only the thread that forked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_nothing_that_was_told_is_lost(crash, one_thread, tmp_path):
    found = crash.crash(tmp_path / 'memory', kills=25)
    assert found.kills == 25 and found.acknowledged > 50
    assert found.acknowledged <= found.committed <= found.acknowledged + 26
    assert found.faults == 0, found


def test_the_loop_finds_what_it_looks_for(crash, one_thread, tmp_path):
    """A segment that was told and is not there, a block altered, one cut off, a note removed."""
    folder = tmp_path / 'memory'
    told = set()
    while len(told) < 8:
        told |= crash._killed_writer(folder, 0.2)
    found = crash.Crashes()
    crash._look(folder, told | {10 ** 6}, found)
    assert (found.missing, found.faults) == (1, 1)
    with crash.Store.open(folder, crash.IDENTITY) as store:
        paths = [store.block_path(block) for block in store.blocks()]
        store.drop_block(min(told), 'segment')
    paths[1].write_bytes(bytes(paths[1].stat().st_size))
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    found = crash.Crashes()
    crash._look(folder, told, found)
    assert (found.missing, found.incomplete, found.corrupt_blocks) == (0, 1, 2), found
