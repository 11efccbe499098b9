"""KV blocks: what was appended is what is held, whatever the chunks; bytes counted by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

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


def test_sealed_until_something_is_added():
    block, *_ = filled([3, 2])
    assert not block.sealed
    block.seal()
    assert block.sealed and block.capacity == block.length == 5
    assert block.keep(torch.tensor([True, False] * 2 + [True])).sealed
    assert KVBlock.from_state(SHAPE, block.start, block.end, block.state()).sealed
    append(block, *torch.ones(2, LAYERS, HEADS, 1, SIZE), 0, 1)
    assert not block.sealed and block.length == 6


def test_a_slice_is_the_storage_itself():
    block, *_ = filled([5])
    part = block.keys[1, :, :3]
    assert part.untyped_storage().data_ptr() == block.keys.untyped_storage().data_ptr()


def test_layers_are_read_as_slices_of_the_storage():
    block, keys, values = filled([3, 4])
    for layer in range(LAYERS):
        for length in (1, 5, 7):
            for part, whole, held in (
                    (block.layer_keys(layer, length), keys, block.keys),
                    (block.layer_values(layer, length), values, block.values)):
                assert torch.equal(part, whole[layer, :, :length])
                assert part.untyped_storage().data_ptr() == held.untyped_storage().data_ptr()


@settings(max_examples=30, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=1, max_size=30), start=st.integers(0, 10 ** 9))
def test_keeps_tokens_at_their_positions(mask, start):
    block, keys, values = filled([len(mask)], start=start, capacity=40)
    kept = block.keep(torch.tensor(mask))
    chosen = [place for place, wanted in enumerate(mask) if wanted]
    assert (kept.length, kept.capacity) == (len(chosen), len(chosen))
    assert (kept.start, kept.end, kept.extent) == (start, start + len(mask), len(mask))
    assert kept.nbytes == len(chosen) * TOKEN_BYTES
    assert torch.equal(kept.keys, keys[:, :, chosen])
    assert torch.equal(kept.values, values[:, :, chosen])
    assert torch.equal(block.keys[:, :, :block.length], keys)
    assert block.length == len(mask)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_goes_through_safetensors(dtype):
    shape = BlockShape(LAYERS, HEADS, SIZE, dtype, torch.device('cpu'))
    block, (keys, values) = KVBlock(shape, start=7, capacity=9), torch.randn(
        2, LAYERS, HEADS, 5, SIZE).to(dtype)
    append(block, keys, values, 0, 5)
    state = load(save(block.state()))
    assert {name: (part.dtype, tuple(part.shape)) for name, part in state.items()} == {
        'keys': (dtype, (LAYERS, HEADS, 5, SIZE)), 'values': (dtype, (LAYERS, HEADS, 5, SIZE))}
    back = KVBlock.from_state(shape, block.start, block.end, state)
    assert (back.start, back.end, back.length, back.capacity) == (7, 12, 5, 5)
    assert torch.equal(back.keys, keys) and torch.equal(back.values, values)
    more = torch.ones(LAYERS, HEADS, 6, SIZE, dtype=dtype)
    append(back, more, more, 5, 6)
    assert back.length == 6 and torch.equal(back.keys[:, :, :5], keys)


def test_moves_to_another_device_without_spare_room():
    block, *_ = filled([5], capacity=20, start=3)
    assert block.to('cpu') is block
    moved = block.to('meta')
    assert moved.shape.device == moved.keys.device == moved.values.device == torch.device('meta')
    assert (moved.length, moved.capacity, moved.start, moved.end) == (5, 5, 3, 8)
    assert block.shape.device == torch.device('cpu')


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
