"""Quantized KV blocks: 8, 4, 3 or 2 bits a number, packed, with one scale for every 32 channels.

In: a sealed `KVBlock`. Out: a `QuantizedBlock`, which never changes and is read like the block it
came from, one layer at a time; only what is read is ever there in full precision. Attention reads
it some tokens at a time, and without turning it back (`turned_keys`).

    codes    uint8 [2, L, H, T, D · bits / 8]     2: keys, values
    scales   uint8 [2, L, H, C, ⌈T / 2⌉]          two 4-bit numbers n a byte: unit · 2^(−n/4)
    units    bfloat16 [2, L, H]                   the largest scale of a layer and head

    letters  L layers   H key-value heads   T tokens   D head size   C = D / 32 groups of channels

How: each group of 32 channels is turned by a fixed orthogonal matrix (signs, then Hadamard), which
spreads outliers and makes numbers nearly Gaussian (QuaRot, arXiv 2404.00456; TurboQuant, arXiv
2504.19874), so that a table of Lloyd-Max levels fits every group and one small scale is all that
it needs: 0.15 bits for every number, in a block of 20 tokens as in one of 800. Minimum and scale
per channel (KIVI, arXiv 2402.02750) cost 1.6 bits where a block has 20 tokens.

Why not the smallest error: levels of the smallest error are all a little too short, by 12 % at
2 bits, so every score q·k shrinks and attention flattens. Here levels are stretched so that x̂·x =
x·x on average, and a group's scale is the one of 16 with the smallest |x − x̂|² + λ (x·(x − x̂))² /
x·x: the second term is the part of the error that does not average out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch.nn.functional import embedding

from tww_ros.errors import ConfigError
from tww_ros.memory.block import BlockShape, KVBlock

BITS = (8, 4, 3, 2)
GROUP = 32
SCALES = 16
SCALES_PER_OCTAVE = 4
BIAS_WEIGHT = 8.0
# Signs of the turn, from the first 32 bits of the fraction of π: any that are not regular will do.
SIGNS = 0x243F6A88
# Positive halves of the Lloyd-Max levels of a unit Gaussian (Max 1960, table I) and their error.
LLOYD_MAX = {
    2: ((0.4528, 1.510), 0.1175),
    3: ((0.2451, 0.7560, 1.344, 2.152), 0.03454),
    4: ((0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733), 0.009497),
    # So fine that even steps are as good.
    8: (tuple(step + 0.5 for step in range(128)), 0.0),
}
TINY = 1e-30


@dataclass(frozen=True)
class QuantScheme:
    """How a block is quantized. bits: of a number, without the scales (0.15 more)."""

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f'bits of a quantized number: expected one of '
                              f'{", ".join(map(str, BITS))}, got {self.bits!r}')


@dataclass(frozen=True, eq=False)
class QuantizedBlock:
    """Keys and values of one run of tokens, quantized; made by `quantize`, never changed."""

    shape: BlockShape
    start: int
    end: int
    codes: torch.Tensor
    scales: torch.Tensor
    units: torch.Tensor

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        return self.codes.shape[3]

    @property
    def extent(self) -> int:
        """Positions that the block occupies on the position axis."""
        return self.end - self.start

    @property
    def bits(self) -> int:
        """Bits of a number, without the scales."""
        return 8 * self.codes.shape[4] // self.shape.head_dim

    @property
    def nbytes(self) -> int:
        """Bytes that the block holds: codes, scales and units."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.units))

    def layer_keys(self, layer: int, length: int) -> torch.Tensor:
        """Keys of the first `length` tokens of one layer, [H, length, D] in the block's dtype."""
        return self._read(0, layer, length)

    def layer_values(self, layer: int, length: int) -> torch.Tensor:
        """Values of the first `length` tokens of one layer, [H, length, D]."""
        return self._read(1, layer, length)

    def to(self, device: torch.device | str) -> QuantizedBlock:
        """The block on `device`; itself when it is there already."""
        device = torch.device(device)
        if self.codes.device == device:
            return self
        return replace(self, shape=replace(self.shape, device=device),
                       **{name: part.to(device) for name, part in self.state().items()})

    def state(self) -> dict[str, torch.Tensor]:
        """Contiguous tensors for safetensors."""
        return {'codes': self.codes, 'scales': self.scales, 'units': self.units}

    @classmethod
    def from_state(cls, shape: BlockShape, start: int, end: int,
                   state: Mapping[str, torch.Tensor]) -> QuantizedBlock:
        """The block that `state()` came from, on the device of `shape`."""
        return cls(shape, start, end, *(state[name].to(shape.device)
                                        for name in ('codes', 'scales', 'units')))

    def turned_keys(self, layer: int, first: int, last: int) -> torch.Tensor:
        """Keys of tokens `first` to `last` of one layer, [H, n, D], each group still turned.

        Who multiplies them with a query turned by `turn` gets the same products for less.
        """
        return self._turned(0, layer, first, last).to(self.shape.dtype)

    def turned_values(self, layer: int, first: int, last: int) -> torch.Tensor:
        """Values likewise; `turn_back` makes sums of them right."""
        return self._turned(1, layer, first, last).to(self.shape.dtype)

    def _read(self, which: int, layer: int, length: int) -> torch.Tensor:
        return turn_back(self._turned(which, layer, 0, length)).to(self.shape.dtype)

    def _turned(self, which: int, layer: int, start: int, end: int) -> torch.Tensor:
        device = self.codes.device
        numbers = self._numbers(self.codes[which, layer, :, start:end])        # [H, n, D]
        scales = self.scales[which, layer, :, :, start // 2:(end + 1) // 2]
        steps = _look_up(scales, _scale_table(device))                         # [H, C, n or more]
        steps = steps[..., start % 2:start % 2 + end - start]                  # [H, C, n]
        scale = steps * self.units[which, layer, :, None, None]
        numbers.unflatten(2, (scale.shape[1], -1)).mul_(scale.transpose(1, 2)[..., None])
        return numbers

    def _numbers(self, packed: torch.Tensor) -> torch.Tensor:
        """Bytes [H, n, D · bits / 8] → levels [H, n, D] float32, without their scales."""
        if self.bits == 8:
            # Even steps around zero: no table is as quick as the subtraction.
            return packed - 127.5
        numbers, first = None, 0
        for width, table in _tables(self.bits, packed.device):
            last = first + self.shape.head_dim * width // 8
            plane = _look_up(packed[..., first:last], table)                   # [H, n, D]
            numbers = plane if numbers is None else numbers.mul_(plane)
            first = last
        return numbers


# What attention reads: the same verbs, in full precision or quantized.
Block: TypeAlias = KVBlock | QuantizedBlock


def quantize(block: KVBlock, scheme: QuantScheme) -> QuantizedBlock:
    """The tokens of `block` with `scheme.bits` bits a number; works layer by layer.

    Raises ConfigError for an empty block, and for a head size that is no multiple of 8.
    """
    shape, length = block.shape, block.length
    if length == 0 or shape.head_dim % 8:
        raise ConfigError('expected a block with tokens and a head size that is a multiple of 8, '
                          f'got {length} tokens and {shape.head_dim}; keep it as it is')
    made = [_encode(torch.stack((block.layer_keys(layer, length),
                                 block.layer_values(layer, length))).float(), scheme.bits)
            for layer in range(shape.layers)]
    return QuantizedBlock(shape, block.start, block.end,
                          *(torch.stack(parts, dim=1) for parts in zip(*made, strict=True)))


def level_table(bits: int, device: torch.device) -> torch.Tensor:
    """float32 [2^bits]: what each code stands for, before its scale."""
    return _levels(bits, device)[1]


def turn(x: torch.Tensor) -> torch.Tensor:
    """[..., D] in the basis in which blocks are quantized; products of two such are the same."""
    return _in_groups(x, turned=True)


def turn_back(x: torch.Tensor) -> torch.Tensor:
    """[..., D] out of that basis."""
    return _in_groups(x, turned=False)


def _in_groups(x: torch.Tensor, *, turned: bool) -> torch.Tensor:
    size = math.gcd(x.shape[-1], GROUP)
    matrix = _turn(size, x.device).to(x.dtype)
    return (x.unflatten(-1, (-1, size)) @ (matrix if turned else matrix.T)).flatten(-2)


def _encode(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and units of one layer's [2, H, T, D] float32."""
    size = math.gcd(x.shape[-1], GROUP)
    turned = turn(x).unflatten(3, (-1, size))                                  # [2, H, T, C, 32]
    bounds, levels = _levels(bits, x.device)
    largest = turned.abs().amax((2, 3, 4), keepdim=True) / levels[-1]
    # bfloat16 may round down by 2^-8, and the largest number must stay within reach.
    units = (largest * (1 + 2 ** -7)).clamp_min(TINY).bfloat16()               # [2, H, 1, 1, 1]
    power = turned.square().sum(-1, keepdim=True).clamp_min(TINY)              # [2, H, T, C, 1]
    best = codes = scales = None
    for number in range(SCALES):
        scale = units.float() * 2.0 ** (-number / SCALES_PER_OCTAVE)
        tried = torch.bucketize(turned / scale, bounds, out_int32=True)        # [2, H, T, C, 32]
        error = turned - embedding(tried, levels[:, None])[..., 0] * scale
        bias = (turned * error).sum(-1, keepdim=True)
        cost = error.square().sum(-1, keepdim=True) + BIAS_WEIGHT * bias.square() / power
        if best is None:
            best, codes, scales = cost, tried, torch.zeros_like(cost, dtype=torch.uint8)
            continue
        better = cost < best
        best, codes = torch.where(better, cost, best), torch.where(better, tried, codes)
        scales = scales.masked_fill(better, number)
    numbers = scales[..., 0].transpose(2, 3)                                   # [2, H, C, T]
    numbers = torch.nn.functional.pad(numbers, (0, numbers.shape[-1] % 2))
    return (_pack(codes.flatten(3), bits), _join(numbers, 4), units[..., 0, 0, 0])


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers of levels [..., D], from the lowest up → bytes [..., D · bits / 8]."""
    if bits != 3:
        return _join(codes.to(torch.uint8), bits)
    # Two bits that say how far from zero, one that says on which side.
    half = 1 << (bits - 1)
    above = codes >= half
    distance = torch.where(above, codes - half, half - 1 - codes)
    return torch.cat((_join(distance.to(torch.uint8), bits - 1),
                      _join(above.to(torch.uint8), 1)), dim=-1)


def _join(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """uint8 [..., n] numbers of `width` bits → bytes [..., n · width / 8], the first one lowest.
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=numbers.device)
    return (numbers.unflatten(-1, (-1, len(shifts))) << shifts).sum(-1, dtype=torch.uint8)


@functools.cache
def _levels(bits: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds [2^bits − 1] between the Lloyd-Max levels, and the levels [2^bits], stretched."""
    half, error = LLOYD_MAX[bits]
    with torch.inference_mode(False):
        levels = torch.tensor((*(-level for level in reversed(half)), *half), device=device)
        return (levels[1:] + levels[:-1]) / 2, levels / (1 - error)


@functools.cache
def _tables(bits: int, device: torch.device) -> tuple[tuple[int, torch.Tensor], ...]:
    """(bits of a code, float32 [256, codes a byte]); a number is the tables' product."""
    _, levels = _levels(bits, device)
    if bits != 3:
        return ((bits, _byte_table(levels, bits)),)
    return ((bits - 1, _byte_table(levels[len(levels) // 2:], bits - 1)),
            (1, _byte_table(torch.tensor((-1.0, 1.0), device=device), 1)))


def _look_up(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] codes in a table [256, k] → [..., n · k]."""
    if codes.device.type == 'cpu':
        # Half the time of torch's embedding, which wants wider codes, too.
        return torch.from_numpy(np.take(table.numpy(), codes.numpy(), axis=0)).flatten(-2)
    return embedding(codes.int(), table).flatten(-2)


@functools.cache
def _scale_table(device: torch.device) -> torch.Tensor:
    """float32 [256, 2]: the two scales of a byte, as parts of the unit."""
    with torch.inference_mode(False):
        numbers = torch.arange(SCALES, dtype=torch.float32, device=device)
        return _byte_table(torch.exp2(-numbers / SCALES_PER_OCTAVE), 4)


def _byte_table(values: torch.Tensor, width: int) -> torch.Tensor:
    """float32 [256, 8 / width]: the values of the codes that lie in a byte."""
    with torch.inference_mode(False):
        codes = torch.arange(256, device=values.device)[:, None] >> torch.arange(
            0, 8, width, device=values.device)                                 # [256, 8 / width]
        return values[codes & ((1 << width) - 1)]


@functools.cache
def _turn(size: int, device: torch.device) -> torch.Tensor:
    """Orthogonal [size, size]: signs, then Hadamard's matrix (Sylvester's construction)."""
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1)
        while len(matrix) < size:
            matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
        signs = torch.tensor([1.0 - 2.0 * (SIGNS >> bit & 1) for bit in range(size)])
        return (signs[:, None] * matrix / math.sqrt(size)).to(device)
