"""Attention backends against a float64 softmax over keys that were never cut into parts."""

from __future__ import annotations

import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tww_ros import load_model
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.quantization import BITS, QuantizedBlock, QuantScheme, quantize
from tww_ros.memory.view import Entry, lay_out
from tww_ros.model.attention import (
    BACKENDS,
    SpanPlan,
    StepPlan,
    Turn,
    choose_backend,
    packed_attention,
)
from tww_ros.model.run import Span, TokenRun

CPU = torch.device('cpu')
LAYER = 1


def turned(x, positions):
    """[..., T, D] in float64, pair i with pair i + D/2 turned by position · 0.3^i."""
    half = x.shape[-1] // 2
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * 0.3 ** torch.arange(half)
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.exp(1j * angle)
    return torch.cat((pairs.real, pairs.imag), -1)


def table(positions, size, dtype):
    """cos and sin [T, D] of the same rotation."""
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * 0.3 ** torch.arange(size // 2)
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def make_span(rng, shape, heads, parts, old, new, bits=()):
    """Inputs of one span, its plan, and what attention must give: [new, heads, D], mass per part.

    parts: (tokens, tokens that the view may see, shift); old, new: own tokens before and in this
    step; bits: of the parts that are quantized, 0 = not. Stored positions are random; a part
    stands at stored position + shift.
    """
    def noise(*size):
        return torch.from_numpy(rng.standard_normal(size)).to(shape.dtype)

    def fill(block, count, at):
        keys, values = noise(shape.kv_heads, count, shape.head_dim), noise(
            shape.kv_heads, count, shape.head_dim)
        block.reserve(count)
        for layer in range(shape.layers):
            block.write(layer, turned(keys, at).to(shape.dtype), values)
        block.commit(count, 0)
        return turned(keys, at), values.double()

    own_at = rng.integers(50, 90, old + new).tolist()
    turns, seen_keys, seen_values, lengths, last_shift = [], [], [], [], None
    for number, (tokens, seen, shift) in enumerate(parts):
        block = KVBlock(shape)
        stored_at = rng.integers(0, 50, tokens).tolist()
        _, values = fill(block, tokens, stored_at)
        if any(bits[number:number + 1]):
            block = quantize(block, QuantScheme(bits[number]))
            values = block.layer_values(LAYER, tokens).double()
        # The same keys where this view sees them, turned once more by the shift.
        seen_keys.append(turned(block.layer_keys(LAYER, seen), [shift] * seen))
        seen_values.append(values[:, :seen])
        if shift != last_shift:
            turns.append(Turn(table([p - shift for p in own_at[old:]], shape.head_dim,
                                    shape.dtype), []))
            last_shift = shift
        turns[-1].blocks.append((block, seen))
        lengths.append(seen)
    block = KVBlock(shape)
    keys, values = fill(block, old, own_at[:old]) if old else (
        torch.zeros(shape.kv_heads, 0, shape.head_dim).double(),) * 2
    block.reserve(new)
    q, k, v = noise(heads, new, shape.head_dim), noise(shape.kv_heads, new, shape.head_dim), noise(
        shape.kv_heads, new, shape.head_dim)
    own = table(own_at[old:], shape.head_dim, shape.dtype)
    if last_shift != 0:
        turns.append(Turn(own, []))
    turns[-1].blocks.append((block, old + new))
    lengths.append(old + new)
    mass = torch.zeros(len(lengths))
    plan = SpanPlan(0, new, block, own, turns, mass,
                    torch.repeat_interleave(torch.tensor(lengths)))

    group = heads // shape.kv_heads
    all_keys = torch.cat([*seen_keys, keys, turned(k, own_at[old:])], 1)
    all_keys = all_keys.repeat_interleave(group, 0)
    all_values = torch.cat([*seen_values, values, v.double()], 1).repeat_interleave(group, 0)
    scores = turned(q, own_at[old:]) @ all_keys.transpose(1, 2) / shape.head_dim ** 0.5
    for token in range(new):
        scores[:, token, all_keys.shape[1] - new + token + 1:] = -torch.inf
    weights = scores.softmax(-1)
    share = [part.mean(0).sum().item() for part in weights[:, -1].split(lengths, -1)]
    return (q, k, v), plan, (weights @ all_values).transpose(0, 1), share


def attend(backend, made):
    """All spans in one packed call, as transformers makes it: [heads, new, D] per span."""
    first = 0
    for (q, _, _), plan, *_ in made:
        plan.first, plan.last = first, first + q.shape[1]
        first = plan.last
    q, k, v = (torch.cat([inputs[i] for inputs, *_ in made], 1)[None] for i in range(3))
    size = q.shape[-1]
    output, weights = packed_attention(
        SimpleNamespace(layer_idx=LAYER), q, k, v, None, scaling=size ** -0.5,
        tww_step=StepPlan([plan for _, plan, *_ in made], choose_backend(backend)))
    assert weights is None
    return [output[0, plan.first:plan.last] for _, plan, *_ in made]


PARTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5), st.integers(-40, 40)).map(
    lambda p: (p[0], max(1, p[0] - p[1]), p[2])), max_size=5)
SPANS = st.lists(st.tuples(PARTS, st.integers(0, 20), st.integers(1, 25)), min_size=1, max_size=3)


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=25, deadline=None)
@given(spans=SPANS, kv_heads=st.integers(1, 3), group=st.integers(1, 4),
       size=st.sampled_from([4, 16, 32]), seed=st.integers(0, 999))
def test_agrees_with_a_float64_softmax(backend, spans, kv_heads, group, size, seed):
    rng = np.random.default_rng(seed)
    shape = BlockShape(3, kv_heads, size, torch.float32, CPU)
    made = [make_span(rng, shape, kv_heads * group, *span) for span in spans]
    for output, (_, plan, expected, share) in zip(attend(backend, made), made, strict=True):
        assert (output - expected).abs().max() < 1e-5
        assert plan.mass.tolist() == pytest.approx(share, abs=1e-5)
        assert plan.mass.sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=25, deadline=None)
@given(parts=PARTS, bits=st.lists(st.sampled_from([0, *BITS]), min_size=5, max_size=5),
       new=st.integers(1, 9), kv_heads=st.integers(1, 3), group=st.integers(1, 4),
       size=st.sampled_from([8, 32, 40]), seed=st.integers(0, 999))
def test_views_may_mix_full_and_quantized_parts(backend, parts, bits, new, kv_heads, group, size,
                                                seed):
    """Expected: float64 attention over what each part says it holds."""
    shape = BlockShape(2, kv_heads, size, torch.float32, CPU)
    made = [make_span(np.random.default_rng(seed), shape, kv_heads * group, parts, 3, new, bits)]
    output, = attend(backend, made)
    _, plan, expected, share = made[0]
    assert (output - expected).abs().max() < 1e-5
    assert plan.mass.tolist() == pytest.approx(share, abs=1e-5)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, those of `known` left out; `peak`: the most."""

    def __init__(self, known):
        super().__init__()
        self.peak = self._now = 0
        self._known = {part.untyped_storage().data_ptr() for part in known}
        self._views = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address, size = storage.data_ptr(), storage.nbytes()
                if address not in self._known:
                    self._views[address] += 1
                    self._now += size if self._views[address] == 1 else 0
                    weakref.finalize(tensor, self._forget, address, size)
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, address, size):
        self._views[address] -= 1
        self._now -= 0 if self._views[address] else size


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('bits', BITS)
def test_one_part_at_a_time_is_dequantized(backend, bits):
    """Memory of a call does not grow with the quantized parts in view, but for their scores."""
    tokens, shape = 64, BlockShape(2, 2, 128, torch.float32, CPU)
    part_bytes = 2 * tokens * 128 * 4
    peaks = {}
    for count in (1, 4, 16):
        made = make_span(np.random.default_rng(0), shape, 2, [(tokens, tokens, 1)] * count, 2, 1,
                         [bits] * count)
        plan = made[1]
        held = [part for turn in plan.turns for block, _ in turn.blocks
                for part in block.state().values()]
        attend(backend, [made])
        plan.mass.zero_()
        with LiveBytes([*made[0], *held, *(plan.block.keys, plan.block.values)]) as live:
            attend(backend, [made])
        peaks[count] = live.peak
    assert peaks[1] > part_bytes
    assert peaks[16] - peaks[4] < part_bytes / 2
    assert peaks[4] - peaks[1] < 2 * part_bytes


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_is_as_good_as_its_inputs(backend):
    rng = np.random.default_rng(0)
    shape = BlockShape(3, 2, 32, torch.bfloat16, CPU)
    made = [make_span(rng, shape, 8, [(300, 300, 5), (200, 150, -3)], 4, 6)]
    output, = attend(backend, made)
    assert output.dtype == torch.bfloat16
    assert (output.double() - made[0][2]).abs().max() < 0.02


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_span_writes_behind_its_committed_tokens_only(backend):
    rng = np.random.default_rng(1)
    shape = BlockShape(3, 2, 8, torch.float32, CPU)
    made = [make_span(rng, shape, 4, [(9, 9, 2)], old, new) for old, new in ((3, 2), (0, 4))]
    before = [plan.block.keys[LAYER].clone() for _, plan, *_ in made]
    lengths = [plan.block.length for _, plan, *_ in made]
    attend(backend, made)
    for (inputs, plan, *_), keys, length in zip(made, before, lengths, strict=True):
        new = inputs[0].shape[1]
        assert plan.block.length == length
        assert torch.equal(plan.block.keys[LAYER, :, :length], keys[:, :length])
        assert torch.equal(plan.block.values[LAYER, :, length:length + new], inputs[2])


def test_auto_is_one_of_them():
    assert choose_backend('auto') in BACKENDS.values()


def test_mass_is_not_collected_when_nobody_asks():
    rng = np.random.default_rng(2)
    shape = BlockShape(3, 1, 8, torch.float32, CPU)
    made = [make_span(rng, shape, 2, [(5, 5, 1)], 0, 2)]
    made[0][1].mass = made[0][1].part_of_key = None
    for backend in BACKENDS:
        output, = attend(backend, made)
        assert (output - made[0][2]).abs().max() < 1e-5


def test_the_model_outside_a_step_says_what_to_do():
    loaded = load_model('tiny-random')
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(RuntimeError, match=r'use VideoLanguageModel\.step'):
        loaded.hf(input_ids=ids)
    with loaded.stock_attention() as hf, torch.inference_mode():
        assert hf(input_ids=ids).logits.shape == (1, 3, 320)
    with pytest.raises(RuntimeError, match='outside a packed step'):
        loaded.hf(input_ids=ids)


def test_a_model_reads_quantized_segments():
    """The same logits as over a block with the numbers that the quantized one says it holds."""
    loaded = load_model('tiny-random')
    segment = loaded.new_block(capacity=30)
    loaded.step([Span(segment, lay_out([], 'continuous'), TokenRun.text(range(30), 0))])
    small = quantize(segment, QuantScheme(3))
    shape = loaded.block_shape
    twin = KVBlock.from_state(shape, small.start, small.end, {
        'keys': torch.stack([small.layer_keys(layer, 30) for layer in range(shape.layers)]),
        'values': torch.stack([small.layer_values(layer, 30) for layer in range(shape.layers)])})
    logits = []
    for block in (small, twin, segment):
        view = lay_out([Entry(block, 'source', 0)], 'continuous')
        own = loaded.new_block(view.next_source)
        logits += loaded.step([Span(own, view, TokenRun.text([5, 6, 7], own.start), 'all')])
    assert isinstance(small, QuantizedBlock)
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert (logits[1] - logits[2]).abs().max() > 1e-3
