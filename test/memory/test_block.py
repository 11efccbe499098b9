"""KV blocks: what was appended is what is held, whatever the chunks; bytes counted by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros.memory.block import BlockShape, KVBlock

LAYERS, HEADS, SIZE = 3, 2, 4
SHAPE = BlockShape(LAYERS, HEADS, SIZE, torch.float32, torch.device('cpu'))
TOKEN_BYTES = 2 * 3 * 2 * 4 * 4


def append(block, keys, values, first, last):
    """Tokens first to last of [L, H, N, D], layer by layer, as a step does it."""
    block.reserve(last - first)
    for layer in range(LAYERS):
        block.write(layer, keys[layer, :, first:last], values[layer, :, first:last])
    block.commit(last - first, block.end + last - first)


def filled(sizes, **options):
    """A block that took chunks of these sizes, and what was put in."""
    total = sum(sizes)
    keys, values = torch.randn(2, LAYERS, HEADS, total, SIZE,
                               generator=torch.Generator().manual_seed(total))
    block, done = KVBlock(SHAPE, **options), 0
    for size in sizes:
        append(block, keys, values, done, done + size)
        done += size
    return block, keys, values


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), max_size=20), capacity=st.integers(0, 50),
       start=st.integers(0, 10 ** 9))
def test_holds_what_was_appended(sizes, capacity, start):
    block, keys, values = filled(sizes, capacity=capacity, start=start)
    total = sum(sizes)
    assert (block.length, block.start, block.end) == (total, start, start + total)
    assert block.extent == total
    assert torch.equal(block.keys[:, :, :total], keys)
    assert torch.equal(block.values[:, :, :total], values)
    assert block.capacity >= max(total, capacity)
    assert block.nbytes == block.capacity * TOKEN_BYTES
    held = block.keys.numel() * 4 + block.values.numel() * 4
    assert block.nbytes == held


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), more=st.integers(1, 9))
def test_seal_gives_back_spare_room_and_growth_goes_on(sizes, more):
    block, keys, values = filled([*sizes, more])
    block, total = KVBlock(SHAPE), sum(sizes)
    append(block, keys, values, 0, total)
    block.reserve(50)
    assert block.capacity >= total + 50
    block.seal()
    assert block.capacity == block.length == total
    assert block.nbytes == total * TOKEN_BYTES
    assert torch.equal(block.keys, keys[:, :, :total])
    append(block, keys, values, total, total + more)
    assert torch.equal(block.keys[:, :, :total + more], keys)
    assert torch.equal(block.values[:, :, :total + more], values)


def test_token_by_token_growth_copies_little():
    """Doubling: 1,000 tokens one by one allocate less than four times what they need."""
    allocated, allocate = [], KVBlock._allocate

    class Counted(KVBlock):
        def _allocate(self, capacity):
            allocated.append(capacity)
            return allocate(self, capacity)

    block = Counted(SHAPE)
    for _ in range(1_000):
        block.reserve(1)
        block.commit(1, block.end + 1)
    assert sum(allocated) < 4 * 1_000 and len(allocated) < 15


def test_room_reserved_at_the_start_is_never_moved():
    block = KVBlock(SHAPE, capacity=30)
    address = block.keys.data_ptr()
    keys, values = torch.ones(2, LAYERS, HEADS, 30, SIZE)
    for first in range(30):
        append(block, keys, values, first, first + 1)
    assert block.keys.data_ptr() == address


def test_a_slice_is_the_storage_itself():
    block, *_ = filled([5])
    part = block.keys[1, :, :3]
    assert part.untyped_storage().data_ptr() == block.keys.untyped_storage().data_ptr()


def test_written_tokens_count_only_when_committed():
    """All layers of a step write before it is committed; a step that fails leaves no token."""
    block, keys, _ = filled([4])
    block.reserve(2)
    block.write(0, torch.ones(HEADS, 2, SIZE), torch.ones(HEADS, 2, SIZE))
    assert (block.length, block.end) == (4, 4)
    block.write(0, torch.zeros(HEADS, 2, SIZE), torch.zeros(HEADS, 2, SIZE))
    assert torch.equal(block.keys[:, :, :4], keys)
    assert not block.keys[0, :, 4:6].any()


@pytest.mark.parametrize(('dtype', 'expected'), [
    (torch.float32, 96 * 2), (torch.bfloat16, 96), (torch.float16, 96)])
def test_token_bytes_by_hand(dtype, expected):
    shape = BlockShape(LAYERS, HEADS, SIZE, dtype, torch.device('cpu'))
    assert shape.token_bytes == expected
    assert KVBlock(shape, capacity=7).nbytes == 7 * expected


def test_extent_is_not_the_length_for_a_patch():
    """Four tokens of a 2 × 2 patch advance positions by two."""
    block = KVBlock(SHAPE, start=100)
    block.reserve(4)
    block.commit(4, 102)
    assert (block.length, block.extent, block.end) == (4, 2, 102)
