"""A Triton kernel that attends to quantized keys and values as they are packed.

In: turned queries of some rows, a `QuantizedBlock`, a layer. Out: what `model.attending` gets from
any unit: results, and the log-sum-exp of the scores. No key and no value is ever written in full
precision: codes become levels in registers, and a group's scale multiplies scores and weights,
not levels:

    score[m, t] = Σ_c scale_k[t, c] · (q[m, c] · level_k[t, c])
    out[m, c]   = Σ_t (p[m, t] · scale_v[t, c]) · level_v[t, c]

One program takes TILE tokens of one key-value head for ROWS rows; tiles are joined by log-sum-exp.
The layout of codes and scales is told in `memory.quantization`.

Triton comes with torch for CUDA and is no requirement of this package: this module is imported
only where it is wanted. Without a GPU it runs in Triton's interpreter (TRITON_INTERPRET=1).

    letters   h key-value heads   M rows of one head: r · G   D head size   C = D / 32 groups
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tww_ros.memory.quantization import GROUP, QuantizedBlock, level_table

TILE = 64
ROWS = 16


def attend_quantized(query: torch.Tensor, block: QuantizedBlock, layer: int, first: int, last: int,
                     scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Turned queries [h, r, G, D] over tokens `first` to `last` of one layer.

    Out: results in the block's basis [h, r · G, D] and log-sum-exps [h, r · G], float32. The head
    size must be a multiple of 32.
    """
    heads, rows, size, head_dim = query.shape
    query = query.reshape(heads, -1, head_dim).contiguous()                    # [h, M, D]
    rows *= size
    tiles = triton.cdiv(last - first, TILE)
    options = {'dtype': torch.float32, 'device': query.device}
    results = torch.empty(tiles, heads, rows, head_dim, **options)
    lses = torch.empty(tiles, heads, rows, **options)
    codes, scales, units = (part[:, layer] for part in (block.codes, block.scales, block.units))
    _attend_tile[tiles, heads, triton.cdiv(rows, ROWS)](
        query, codes, scales, units, level_table(block.bits, query.device), results, lses,
        rows, first, last, scaling, codes.stride(0), codes.stride(1), codes.stride(2),
        scales.stride(0), scales.stride(1), scales.stride(2), units.stride(0),
        heads * rows, BITS=block.bits, D=head_dim, GROUP=GROUP, TILE=TILE, ROWS=ROWS)
    if tiles == 1:
        return results[0], lses[0]
    lse = lses.logsumexp(0)
    return (results * (lses - lse).exp_()[..., None]).sum(0), lse


@triton.jit
def _levels(codes, channels, tokens, mask, table, stride, BITS: tl.constexpr, D: tl.constexpr):
    """Levels [TILE, GROUP] of some channels of some tokens."""
    row = codes + tokens[:, None] * stride
    if BITS == 8:
        return tl.load(row + channels[None, :], mask=mask[:, None], other=0).to(tl.float32) - 127.5
    width: tl.constexpr = 2 if BITS == 3 else BITS
    each: tl.constexpr = 8 // width
    byte = tl.load(row + (channels // each)[None, :], mask=mask[:, None], other=0).to(tl.int32)
    number = (byte >> (channels % each * width)[None, :]) & ((1 << width) - 1)
    if BITS == 3:
        # How far from zero, then on which side.
        byte = tl.load(row + (D // 4 + channels // 8)[None, :], mask=mask[:, None], other=0)
        above = (byte.to(tl.int32) >> (channels % 8)[None, :]) & 1
        return tl.load(table + 4 + number) * (2 * above - 1).to(tl.float32)
    return tl.load(table + number)


@triton.jit
def _scales(scales, unit, group, tokens, mask, stride):
    """Scales [TILE] of one group of channels: unit · 2^(−n / 4)."""
    byte = tl.load(scales + group * stride + tokens // 2, mask=mask, other=0).to(tl.int32)
    number = (byte >> (tokens % 2 * 4)) & 15
    return unit * tl.exp2(number.to(tl.float32) * -0.25)


@triton.jit
def _attend_tile(query, codes, scales, units, table, results, lses, rows, first, last, scaling,
                 codes_kind, codes_head, codes_token, scales_kind, scales_head, scales_group,
                 units_kind, results_tile, BITS: tl.constexpr, D: tl.constexpr,
                 GROUP: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    tokens = first + tile * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, GROUP)
    there, real = tokens < last, row < rows
    key_codes, key_scales = codes + head * codes_head, scales + head * scales_head
    unit = tl.load(units + head).to(tl.float32)
    at = (head * rows + row)[:, None] * D
    score = tl.zeros((ROWS, TILE), tl.float32)
    for group in tl.static_range(D // GROUP):
        channels = group * GROUP + channel
        levels = _levels(key_codes, channels, tokens, there, table, codes_token, BITS, D)
        part = tl.load(query + at + channels[None, :], mask=real[:, None], other=0).to(tl.float32)
        scale = _scales(key_scales, unit, group, tokens, there, scales_group)
        score += tl.dot(part, tl.trans(levels), input_precision='ieee') * scale[None, :]
    score = tl.where(there[None, :], score * scaling, float('-inf'))
    largest = tl.max(score, 1)
    weight = tl.exp(score - largest[:, None])
    total = tl.sum(weight, 1)
    value_codes, value_scales = key_codes + codes_kind, key_scales + scales_kind
    unit = tl.load(units + units_kind + head).to(tl.float32)
    for group in tl.static_range(D // GROUP):
        channels = group * GROUP + channel
        levels = _levels(value_codes, channels, tokens, there, table, codes_token, BITS, D)
        scale = _scales(value_scales, unit, group, tokens, there, scales_group)
        out = tl.dot(weight * scale[None, :], levels, input_precision='ieee') / total[:, None]
        tl.store(results + tile * results_tile * D + at + channels[None, :], out,
                 mask=real[:, None])
    tl.store(lses + tile * results_tile + head * rows + row, largest + tl.log(total), mask=real)
