"""Attention backends against a float64 softmax over keys that were never cut into parts."""

from __future__ import annotations

import logging
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
from transformers import Qwen3VLTextConfig

from tww_ros import load_model
from tww_ros.errors import ConfigError
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.quantization import BITS, QuantizedBlock, QuantScheme, quantize
from tww_ros.memory.view import Entry, Part, View, lay_out
from tww_ros.model import attending, attention, planning
from tww_ros.model.attention import choose_backend, packed_attention
from tww_ros.model.joining import Pages
from tww_ros.model.planning import plan_step
from tww_ros.model.positions import MRope
from tww_ros.model.run import Span, TokenRun

CPU = torch.device('cpu')
LAYER = 1
# The other one, `triton`, is for GPUs: see test_kernels.
BACKENDS = ('eager', 'grouped', 'fused')
THETA = 50.0


def axes(size):
    """Of every pair of channels: 0 time, 1 height, 2 width, interleaved; the rest is time."""
    third = size // 6
    return [pair % 3 if pair < 3 * third else 0 for pair in range(size // 2)]


def turned(x, positions):
    """[..., T, D] in float64: pair i with pair i + D/2, by its axis' position · θ^(-2i/D)."""
    half = x.shape[-1] // 2
    at = torch.as_tensor(np.array(positions)[axes(2 * half)].T.copy(), dtype=torch.float64)
    angle = at * THETA ** (-torch.arange(half, dtype=torch.float64) / half)    # [T, D/2]
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.exp(1j * angle)
    return torch.cat((pairs.real, pairs.imag), -1)


def rope(size):
    section = [size // 2 - 2 * (size // 6), size // 6, size // 6]
    return MRope(Qwen3VLTextConfig(head_dim=size, rope_parameters={
        'rope_type': 'default', 'rope_theta': THETA, 'mrope_section': section}), CPU)


class Memory:
    """Blocks at random stored positions, and spans that see them.

    blocks: (tokens, bits of a number, 0 = not quantized); any number of spans sees any of them,
    from wherever it likes.
    """

    def __init__(self, shape, heads, blocks, seed=0):
        self.shape, self.heads, self.rope = shape, heads, rope(shape.head_dim)
        self.rng = np.random.default_rng(seed)
        self.blocks = []
        for tokens, bits in blocks:
            block = KVBlock(shape)
            self.fill(block, tokens, self.rng.integers(0, 50, (3, tokens)))
            block.seal()
            self.blocks.append(quantize(block, QuantScheme(bits)) if bits else block)
        self.spans, self.inputs, self.expected, self.shares = [], [], [], []

    def noise(self, heads, tokens):
        size = (heads, tokens, self.shape.head_dim)
        return torch.from_numpy(self.rng.standard_normal(size)).to(self.shape.dtype)

    def fill(self, block, tokens, at):
        keys, values = (self.noise(self.shape.kv_heads, tokens) for _ in range(2))
        block.reserve(tokens)
        for layer in range(self.shape.layers):
            block.write(layer, turned(keys, at).to(self.shape.dtype), values)
        block.commit(tokens, 0)
        return turned(keys, at), values.double()

    def add(self, seen, old, new, asks=True):
        """A span that sees (block, tokens of it, shift); old, new: own tokens before and now."""
        kv_heads, parts = self.shape.kv_heads, []
        keys, values, lengths = [], [], []
        for number, tokens, shift in seen:
            block = self.blocks[number]
            parts.append(Part(block, tokens, shift, number))
            stored = block.layer_keys(LAYER, block.length)[:, :tokens]
            # The same keys where this view sees them, turned once more by the shift.
            keys.append(turned(stored, np.full((3, tokens), shift)))
            values.append(block.layer_values(LAYER, block.length)[:, :tokens].double())
            lengths.append(tokens)
        own, at = KVBlock(self.shape), self.rng.integers(50, 90, (3, old + new))
        for kept, more in zip((keys, values), self.fill(own, old, at[:, :old]), strict=True):
            kept.append(more)
        lengths.append(old + new)
        q, k, v = (self.noise(count, new) for count in (self.heads, kv_heads, kv_heads))
        run = TokenRun(tuple(range(new)), at[:, old:], 100)
        self.spans.append(Span(own, View(tuple(parts), 0, 0), run,
                               mass=torch.zeros(len(lengths) + 2) if asks else None))
        self.inputs.append((q, k, v))
        group = self.heads // kv_heads
        all_keys = torch.cat([*keys, turned(k, at[:, old:])], 1).repeat_interleave(group, 0)
        all_values = torch.cat([*values, v.double()], 1).repeat_interleave(group, 0)
        scores = turned(q, at[:, old:]) @ all_keys.transpose(1, 2) / self.shape.head_dim ** 0.5
        for token in range(new):
            scores[:, token, all_keys.shape[1] - new + token + 1:] = -torch.inf
        weights = scores.softmax(-1)
        self.shares.append([part.mean(0).sum().item()
                            for part in weights[:, -1].split(lengths, -1)] + [0, 0])
        self.expected.append((weights @ all_values).transpose(0, 1))
        return self

    def plan(self, backend, pages=False):
        joined = Pages(self.rope, self.shape)
        return plan_step(self.spans, self.rope, self.shape.dtype, CPU,
                         choose_backend(backend, self.shape, self.heads),
                         (lambda view: joined.join(view.parts)) if pages else
                         (lambda view: view.parts))

    def attend(self, backend, pages=False):
        """All spans in one packed call, as transformers makes it: [new, heads, D] per span."""
        plan = self.plan(backend, pages)
        q, k, v = (torch.cat([inputs[i] for inputs in self.inputs], 1)[None] for i in range(3))
        with torch.inference_mode():
            output, weights = packed_attention(
                SimpleNamespace(layer_idx=LAYER), q, k, v, None,
                scaling=self.shape.head_dim ** -0.5, tww_step=plan)
        assert weights is None and output.dtype == self.shape.dtype
        plan.add_mass()
        return output[0].split([len(span.run) for span in self.spans])

    def check(self, backend, tolerance=1e-5, pages=False):
        for got, expected in zip(self.attend(backend, pages), self.expected, strict=True):
            assert (got - expected).abs().max() < tolerance
        for span, share in zip(self.spans, self.shares, strict=True):
            if span.mass is not None:
                assert span.mass.tolist() == pytest.approx(share, abs=tolerance)
                assert span.mass.sum().item() == pytest.approx(1.0, abs=tolerance)


@st.composite
def memories(draw, bits=(0,), sizes=(4, 16, 32), dtype=torch.float32):
    """Some blocks and up to five spans, short and long; many see the same blocks, or none."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    blocks = draw(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(bits)), max_size=6))
    made = Memory(BlockShape(3, kv_heads, draw(st.sampled_from(sizes)), dtype, CPU),
                  kv_heads * group, blocks, draw(st.integers(0, 999)))
    for _ in range(draw(st.integers(1, 5))):
        seen = [(number, max(1, tokens - draw(st.sampled_from([0, 0, 1, 9]))),
                 draw(st.sampled_from([0, 0, 7, -40])))
                for number, (tokens, _) in enumerate(blocks) if draw(st.booleans())]
        new = draw(st.one_of(st.just(1), st.integers(1, 25)))
        made.add(seen, draw(st.integers(0, 20)), new, draw(st.booleans()))
    return made


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=40, deadline=None)
@given(made=memories())
def test_agrees_with_a_float64_softmax(backend, made):
    made.check(backend)


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=40, deadline=None)
@given(made=memories(bits=(0, *BITS), sizes=(8, 32, 40, 64)))
def test_views_may_mix_full_and_quantized_parts(backend, made):
    """Expected: float64 attention over what each part says it holds."""
    made.check(backend)


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=10, deadline=None)
@given(made=memories(bits=(0, *BITS), sizes=(32, 64), dtype=torch.bfloat16))
def test_bfloat16_is_as_good_as_its_inputs(backend, made):
    for got, expected in zip(made.attend(backend), made.expected, strict=True):
        assert (got.double() - expected).abs().max() < 0.02 * max(1, expected.abs().max())


@pytest.mark.parametrize('backend', BACKENDS)
@settings(max_examples=20, deadline=None)
@given(made=memories(bits=(0, 0, 0, 4), sizes=(16,)))
def test_joined_parts_change_nothing(backend, made):
    made.check(backend, pages=True)


@pytest.mark.parametrize('bits', [0, 3])
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('new', [1, 5, 70])
def test_many_and_long_parts(backend, new, bits, monkeypatch):
    """More results than are held at once, more tokens than are read at once, in odd tiles."""
    monkeypatch.setitem(planning.TILE_NUMBERS, 'cpu', 2 * 32 * 251)
    blocks = [(20, bits)] * 40 + [(601, bits)]
    made = Memory(BlockShape(2, 2, 32, torch.float32, CPU), 8, blocks)
    for shift in (0, 9):
        made.add([(number, tokens, shift + number % 3)
                  for number, (tokens, _) in enumerate(blocks)], 3, new)
    made.check(backend)


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
        made = Memory(shape, 2, [(tokens, bits)] * count)
        made.add([(number, tokens, 1) for number in range(count)], 2, 1)
        span = made.spans[0]
        held = [part for block in made.blocks for part in block.state().values()]
        made.attend(backend)
        with LiveBytes([*made.inputs[0], *held, span.block.keys, span.block.values]) as live:
            made.attend(backend)
        peaks[count] = live.peak
    assert peaks[1] > part_bytes
    assert peaks[16] - peaks[4] < part_bytes / 2
    assert peaks[4] - peaks[1] < 2 * part_bytes


@pytest.mark.parametrize('backend', ['grouped', 'fused'])
@pytest.mark.parametrize('bits', BITS)
def test_a_long_quantized_part_is_read_in_tiles(backend, bits, monkeypatch):
    """A part eight times as long takes no eight times as much memory."""
    monkeypatch.setitem(planning.TILE_NUMBERS, 'cpu', 2 * 64 * 256)
    shape, peaks = BlockShape(2, 2, 64, torch.float32, CPU), {}
    for tokens in (256, 2_048):
        made = Memory(shape, 2, [(tokens, bits)]).add([(0, tokens, 1)], 2, 1, asks=False)
        made.attend(backend)
        with LiveBytes([*made.inputs[0], *made.blocks[0].state().values(),
                        made.spans[0].block.keys, made.spans[0].block.values]) as live:
            made.attend(backend)
        peaks[tokens] = live.peak
    assert peaks[2_048] < 1.2 * peaks[256]


class Reads:
    """Counts how often a layer's keys of a block are read."""

    def __init__(self, monkeypatch):
        self.count = Counter()
        for kind, name in ((KVBlock, 'layer_keys'), (QuantizedBlock, 'turned_keys')):
            monkeypatch.setattr(kind, name, self._counting(getattr(kind, name)))

    def _counting(self, verb):
        def read(block, layer, *tokens):
            self.count[id(block)] += 1
            return verb(block, layer, *tokens)
        return read


@pytest.mark.parametrize('backend', ['grouped', 'fused'])
def test_sessions_that_decode_together_read_each_block_once(backend, monkeypatch):
    blocks = [(30, 0), (20, 3), (200, 0), (12, 0)]
    made = Memory(BlockShape(2, 2, 32, torch.float32, CPU), 8, blocks)
    for session in range(8):
        made.add([(number, tokens, 3 * session + number)
                  for number, (tokens, _) in enumerate(blocks)], session, 1, asks=False)
    reads = Reads(monkeypatch)
    made.attend(backend)
    assert [reads.count[id(block)] for block in made.blocks] == [1] * len(blocks)
    made.check(backend)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('backend', ['grouped', 'fused'])
def test_one_more_session_costs_its_own_block_only(backend):
    """Operations of a layer: a session adds as many, whether memory has 4 parts or 40."""
    cost = {}
    for parts in (4, 40):
        counts = []
        for sessions in (2, 3):
            made = Memory(BlockShape(2, 1, 16, torch.float32, CPU), 2, [(9, 0)] * parts)
            for session in range(sessions):
                made.add([(number, 9, session) for number in range(parts)], 4, 1)
            with Operations() as operations:
                made.attend(backend)
            counts.append(operations.count)
        cost[parts] = counts[1] - counts[0]
    assert cost[4] == cost[40] < 40


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_span_writes_behind_its_committed_tokens_only(backend):
    made = Memory(BlockShape(3, 2, 8, torch.float32, CPU), 4, [(9, 0)])
    for old, new in ((3, 2), (0, 4)):
        made.add([(0, 9, 2)], old, new)
    before = [span.block.keys[LAYER].clone() for span in made.spans]
    made.attend(backend)
    for span, (_, _, v), keys in zip(made.spans, made.inputs, before, strict=True):
        length, new = span.block.length, len(span.run)
        assert length == keys.shape[1]
        assert torch.equal(span.block.keys[LAYER, :, :length], keys)
        assert torch.equal(span.block.values[LAYER, :, length:length + new], v)


SHAPE = BlockShape(2, 2, 32, torch.float32, CPU)


def test_auto_takes_the_quickest_for_each_kind_and_says_so(caplog, monkeypatch):
    took_ms = {'short': {'grouped': 1.0, 'fused': 3.0}, 'long': {'grouped': 9.0, 'fused': 2.0}}
    partials = attention._partials(SHAPE)
    names = {partial: name for name, partial in partials.items()}
    monkeypatch.setattr(attention, '_partials', lambda shape: partials)
    monkeypatch.setattr(attention, '_ways', lambda *_: took_ms)
    monkeypatch.setattr(attention, '_seconds', lambda way, device: way / 1e3)
    monkeypatch.setattr(
        attention, 'unit_by_unit',
        lambda short, long, packed: lambda *_: (names[short], names[long], packed))
    attention._quickest.cache_clear()
    with caplog.at_level(logging.INFO, attention.logger.name):
        for _ in range(2):
            auto = choose_backend('auto', SHAPE, 8)
            for layer in range(2):
                assert auto(None, None, layer, 1.0) == ('grouped', 'fused', None)
    assert [record.message for record in caplog.records] == [
        'attention on cpu, torch.float32: short grouped 1.00 ms (fused 3.00), '
        'long fused 2.00 ms (grouped 9.00)']
    assert choose_backend('fixed', SHAPE, 8)() == ('fused', 'fused', None)
    attention._quickest.cache_clear()


def test_the_quickest_is_really_timed():
    attention._quickest.cache_clear()
    chosen = attention._quickest(SHAPE, 8, None)
    assert chosen.keys() == {'short', 'long'} and set(chosen.values()) <= {'grouped', 'fused'}


def test_a_backend_that_is_not_there_says_so(monkeypatch):
    """torch's operators are not a public interface: they may go, or mean something else."""
    def gone(*_, **__):
        raise AttributeError("'_OpNamespace' 'aten' object has no attribute 'flash'")

    monkeypatch.setattr(attending, '_flash', lambda device, dtype: gone)
    with pytest.raises(ConfigError, match=r'"fused" needs .* torch.float32 on cpu'):
        choose_backend('fused', SHAPE, 8)
    made = Memory(SHAPE, 8, [(9, 0)]).add([(0, 9, 2)], 2, 3)
    made.check('fixed')
    with pytest.raises(ConfigError, match=r'"triton" needs a GPU and the package triton'):
        choose_backend('triton', BlockShape(2, 2, 16, torch.float32, CPU), 8)
    with pytest.raises(ConfigError, match=r"expected auto, fixed or one of .* got 'flash'"):
        choose_backend('flash', SHAPE, 8)


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
