"""Quantized blocks against a naive float64 decoder and encoder; bytes counted by hand.

The naive side knows the layout from the module's docstring only: bits are picked one number at a
time, the turn is written as parities, and every scale is tried.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from tww_ros.errors import ConfigError
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.quantization import LLOYD_MAX, QuantizedBlock, QuantScheme, quantize

BITS = (8, 4, 3, 2)
DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
# The fraction of pi in hexadecimal begins with 243F6A88.
SIGNS = [-1.0 if 0x243F6A88 >> bit & 1 else 1.0 for bit in range(32)]
LEVELS = {bits: (np.array([*(-x for x in reversed(half)), *half]), 1 / (1 - error))
          for bits, (half, error) in LLOYD_MAX.items()}


def filled(keys, values, dtype=torch.float32, device='cpu', spare=0):
    """A block [L, H, T, D] with some room behind its tokens."""
    layers, heads, tokens, size = keys.shape
    block = KVBlock(BlockShape(layers, heads, size, dtype, torch.device(device)), start=100,
                    capacity=tokens + spare)
    for layer in range(layers):
        block.write(layer, torch.as_tensor(keys[layer]).to(device, dtype),
                    torch.as_tensor(values[layer]).to(device, dtype))
    block.commit(tokens, 100 + max(1, tokens - 2))
    return block


def noise(layers, heads, tokens, size, seed=0):
    return np.random.default_rng(seed).standard_normal((2, layers, heads, tokens, size))


def turn(size):
    """[size, size]: what a group of channels is multiplied with before it is quantized."""
    parity = [[(-1) ** bin(row & column).count('1') for column in range(size)]
              for row in range(size)]
    return np.array(SIGNS[:size])[:, None] * np.array(parity) / math.sqrt(size)


def naive_code(packed, bits, size, channel):
    """The number of the level of one channel, from the bytes of one token."""
    def pick(data, width):
        first = channel * width
        return int(data[first // 8]) >> first % 8 & (1 << width) - 1
    if bits != 3:
        return pick(packed, bits)
    distance, above = pick(packed[:size // 4], 2), pick(packed[size // 4:], 1)
    return 4 + distance if above else 3 - distance


def naive_group(block, place, group, size):
    """(turned numbers [size], the scale's number) of one group; place: which, layer, head, token.
    """
    which, layer, head, token = place
    packed = block.codes[which, layer, head, token].tolist()
    levels, stretch = LEVELS[block.bits]
    codes = [naive_code(packed, block.bits, block.shape.head_dim, group * size + channel)
             for channel in range(size)]
    number = int(block.scales[which, layer, head, group, token // 2]) >> 4 * (token % 2) & 15
    scale = float(block.units[which, layer, head]) * 2 ** (-number / 4)
    return levels[codes] * stretch * scale, number


def group_size(size):
    return math.gcd(size, 32)


def places(block):
    shape = block.shape
    return np.ndindex(2, shape.layers, shape.kv_heads, block.length)


def read(block):
    """[2, L, H, T, D] float64 of either kind of block."""
    layers = range(block.shape.layers)
    return torch.stack([torch.stack([verb(layer, block.length) for layer in layers])
                        for verb in (block.layer_keys, block.layer_values)]).double().cpu().numpy()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('bits', BITS)
@settings(max_examples=12, deadline=None)
@given(layers=st.integers(1, 2), heads=st.integers(1, 2), tokens=st.integers(1, 7),
       size=st.sampled_from([32, 40, 64, 80, 128]), seed=st.integers(0, 999))
def test_reads_what_the_bytes_say(device, bits, layers, heads, tokens, size, seed):
    block = quantize(filled(*noise(layers, heads, tokens, size, seed), device=device),
                     QuantScheme(bits))
    expected, group = np.zeros((2, layers, heads, tokens, size)), group_size(size)
    for place in places(block):
        for first in range(0, size, group):
            numbers, _ = naive_group(block, place, first // group, group)
            expected[place][first:first + group] = turn(group) @ numbers
    assert np.abs(read(block) - expected).max() < 1e-5 * np.abs(expected).max()
    assert (block.start, block.end, block.length) == (100, 100 + max(1, tokens - 2), tokens)
    assert (block.extent, block.bits) == (max(1, tokens - 2), bits)


@pytest.mark.parametrize('bits', BITS)
@settings(max_examples=8, deadline=None)
@given(tokens=st.integers(1, 5), size=st.sampled_from([32, 64]), seed=st.integers(0, 999),
       spread=st.sampled_from([0.0, 1.0, 3.0]))
def test_takes_the_best_of_the_scales(bits, tokens, size, seed, spread):
    """Error² + 8 · (the part of it along x)²: no scale that was not taken has less."""
    data = noise(1, 1, tokens, size, seed)
    data *= np.exp(spread * np.random.default_rng(seed).standard_normal((2, 1, 1, tokens, 1)))
    data = data.astype(np.float32).astype(np.float64)
    block = quantize(filled(*data), QuantScheme(bits))
    levels, stretch = LEVELS[bits]

    def cost(x, got):
        return ((x - got) ** 2).sum() + 8 * (x @ (x - got)) ** 2 / (x @ x)

    group = group_size(size)
    for place in places(block):
        for first in range(0, size, group):
            x = data[place][first:first + group] @ turn(group)
            unit = float(block.units[place[:3]])
            tried = []
            for number in range(16):
                scale = unit * 2 ** (-number / 4)
                nearest = np.abs(x[:, None] / scale - levels).argmin(1)
                tried.append(cost(x, levels[nearest] * stretch * scale))
            numbers, _ = naive_group(block, place, first // group, group)
            assert cost(x, numbers) <= min(tried) * (1 + 1e-4)


@pytest.mark.parametrize('bits', BITS)
@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 40), size=st.sampled_from([32, 48, 96, 256]),
       kind=st.sampled_from(['noise', 'outlier', 'channel', 'token', 'constant', 'sparse']),
       magnitude=st.sampled_from([1e-6, 1.0, 1e4]), seed=st.integers(0, 999))
def test_error_is_bounded_whatever_is_stored(bits, tokens, size, kind, magnitude, seed):
    """The largest scale reaches every number, and the one that was taken is no worse."""
    data = noise(1, 2, tokens, size, seed) * magnitude
    if kind == 'outlier':
        data[0, 0, 0, 0, 0] *= 1_000
    elif kind == 'channel':
        data[..., 3] += 50 * magnitude
    elif kind == 'token':
        data[:, :, :, 0] *= 100
    elif kind == 'constant':
        data[:] = magnitude
    elif kind == 'sparse':
        data *= np.random.default_rng(seed).random(data.shape) < 0.02
    data = data.astype(np.float32).astype(np.float64)
    block = quantize(filled(*data), QuantScheme(bits))
    levels, stretch = LEVELS[bits]
    bounds = (levels[1:] + levels[:-1]) / 2
    reach = levels[-1] * stretch
    edges = np.array([-reach, *np.repeat(bounds, 2), reach]).reshape(-1, 2)     # [cells, 2]
    worst = np.abs(edges - (levels * stretch)[:, None]).max()
    group = group_size(size)
    # Cauchy-Schwarz: the second term of the cost is at most 8 times the first.
    error = np.linalg.norm((read(block) - data).reshape(2, 1, 2, tokens, -1, group), axis=-1)
    units = block.units.double().numpy()[..., None, None]
    assert (error <= math.sqrt(9 * group) * worst * units * (1 + 1e-5) + 1e-25).all()


def gauss(x):
    """Density and distribution of a unit Gaussian."""
    return (math.exp(-x * x / 2) / math.sqrt(2 * math.pi), (1 + math.erf(x / math.sqrt(2))) / 2)


@pytest.mark.parametrize('bits', [4, 3, 2])
def test_levels_are_the_means_of_their_cells(bits):
    """Lloyd and Max: each level is the mean of a Gaussian between the bounds around it."""
    levels, stretch = LEVELS[bits]
    bounds = [-40.0, *((levels[1:] + levels[:-1]) / 2), 40.0]
    kept = 0.0
    for level, low, high in zip(levels, bounds, bounds[1:], strict=False):
        (f_low, p_low), (f_high, p_high) = gauss(low), gauss(high)
        assert (f_low - f_high) / (p_high - p_low) == pytest.approx(level, abs=1e-3)
        kept += (p_high - p_low) * level ** 2
    assert 1 / kept == pytest.approx(stretch, rel=1e-3)


@pytest.mark.parametrize(('bits', 'most'), [(8, 2e-4), (4, 0.011), (3, 0.038), (2, 0.135)])
def test_error_and_length_of_gaussian_numbers(bits, most):
    """error²: of a stretched Lloyd-Max quantizer, D / (1 − D); along x little is lost.

    Without the stretch 12 % would be at 2 bits, and 3.5 % at 3.
    """
    data = noise(1, 2, 200, 64)
    got = read(quantize(filled(*data), QuantScheme(bits)))
    assert ((got - data) ** 2).mean() / (data ** 2).mean() < most
    along = (got * data).sum(-1) / (data ** 2).sum(-1)
    assert along.mean() == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize(('shape', 'bits', 'expected'), [
    # codes 18 · 32 · 3 / 8 = 216, scales 9, units 2, for each of 2 · 5 · 2
    ((5, 2, 18, 32), 3, 20 * (216 + 9 + 2)),
    ((5, 2, 19, 32), 2, 20 * (152 + 10 + 2)),
    ((1, 1, 1, 32), 8, 2 * (32 + 1 + 2)),
    # codes 800 · 64 = 51,200, scales 4 · 400, units 2
    ((2, 8, 800, 128), 4, 32 * (51_200 + 1_600 + 2)),
])
def test_bytes_by_hand(shape, bits, expected):
    block = quantize(filled(*noise(*shape), spare=50), QuantScheme(bits))
    assert block.nbytes == expected
    held = [getattr(block, field.name) for field in dataclasses.fields(block)]
    assert expected == sum(part.untyped_storage().nbytes() for part in held
                           if isinstance(part, torch.Tensor))


@pytest.mark.parametrize('shape', [(5, 2, 14, 32), (5, 2, 18, 32), (5, 2, 21, 32),
                                   (2, 8, 150, 128), (1, 8, 800, 128)])
def test_three_bits_are_five_times_smaller_than_bfloat16(shape):
    """All overhead counted, for short segments of a small model and long ones of a large one."""
    data = noise(*shape)
    for bits, times in ((3, 5.02), (2, 7.2)):
        nbytes = quantize(filled(*data), QuantScheme(bits)).nbytes
        assert 2 * data.size / nbytes >= times
        assert 8 * nbytes / data.size <= bits + 0.18


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('bits', BITS)
def test_reads_in_the_dtype_of_the_block(dtype, bits):
    data = noise(2, 2, 9, 64)
    source = filled(*data, dtype=dtype)
    block = quantize(source, QuantScheme(bits))
    assert block.layer_keys(1, 9).dtype == block.layer_values(0, 3).dtype == dtype
    exact = read(quantize(filled(*read(source)), QuantScheme(bits)))
    assert np.abs(read(block) - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize('bits', BITS)
def test_the_first_tokens_are_those_of_the_whole(bits):
    block = quantize(filled(*noise(2, 3, 11, 32)), QuantScheme(bits))
    for length in (1, 2, 7, 10):
        for verb in (block.layer_keys, block.layer_values):
            part = verb(1, length)
            assert part.shape == (3, length, 32)
            assert torch.allclose(part, verb(1, 11)[:, :length], atol=1e-6)


def test_is_made_of_committed_tokens_and_leaves_the_block_alone():
    data = noise(2, 2, 6, 32)
    source = filled(*data, spare=10)
    before = source.keys.clone(), source.values.clone()
    source.keys[:, :, 6:] = torch.nan
    block = quantize(source, QuantScheme(4))
    assert np.isfinite(read(block)).all() and block.length == 6
    assert torch.equal(source.keys[:, :, :6], before[0][:, :, :6])
    assert torch.equal(source.values[:, :, :6], before[1][:, :, :6])
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.end = 3


@pytest.mark.parametrize('bits', BITS)
def test_goes_through_safetensors(bits):
    block = quantize(filled(*noise(2, 2, 7, 64)), QuantScheme(bits))
    state = block.state()
    assert all(part.is_contiguous() for part in state.values())
    back = QuantizedBlock.from_state(block.shape, block.start, block.end, load(save(state)))
    assert (back.start, back.end, back.length, back.nbytes, back.bits) == (
        block.start, block.end, block.length, block.nbytes, bits)
    assert np.array_equal(read(back), read(block))


def test_moves_to_another_device():
    block = quantize(filled(*noise(1, 1, 5, 32)), QuantScheme(4))
    assert block.to('cpu') is block
    moved = block.to('meta')
    assert {part.device.type for part in moved.state().values()} == {'meta'}
    assert (moved.shape.device.type, moved.length, moved.nbytes) == ('meta', 5, block.nbytes)


def test_what_cannot_be_quantized_says_so():
    with pytest.raises(ConfigError, match='one of 8, 4, 3, 2, got 5'):
        QuantScheme(5)
    with pytest.raises(ConfigError, match='got 0 tokens and 32'):
        quantize(KVBlock(BlockShape(1, 1, 32, torch.float32, torch.device('cpu'))),
                 QuantScheme(4))
    with pytest.raises(ConfigError, match='got 2 tokens and 36'):
        quantize(filled(*noise(1, 1, 2, 36)), QuantScheme(4))
