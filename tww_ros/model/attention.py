"""Attention over views: the function that transformers calls in every layer of a packed step.

In: un-rotated queries, keys and values of all spans of the step, [1, heads, N, D], and the step's
plan (`model.planning`). Every span's rotated keys and values are written behind its own block,
then a backend (`model.attending`) attends, each span to its view and causally to its own block.
Out: [1, N, heads, D]. Spans never see each other except through a view that names the other's
block.

Which backend: the one that is told; `fixed`, the one that is best by what is known beforehand; or
`auto`, the quickest here: each is timed once for a device, a dtype and a shape, short spans, long
spans and quantized blocks apart, and one line is logged. Backends round differently, so a run that
must come out the same again takes `fixed`.

Registered under the name 'tww' with `AttentionInterface` and `AttentionMaskInterface`; the model
is not changed.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from tww_ros.errors import ConfigError
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.quantization import GROUP, QuantizedBlock, QuantScheme, quantize
from tww_ros.model.attending import (
    Packed,
    Partial,
    attend_eager,
    fused,
    grouped,
    unit_by_unit,
)
from tww_ros.model.planning import Attend, StepPlan
from tww_ros.model.positions import rotate_signed

NAME = 'tww'
BACKENDS = ('eager', 'grouped', 'fused', 'triton')
# What is timed: one token, and a chunk of reading, over blocks of so many tokens.
TIMED_ROWS = {'short': 1, 'long': 64}
TIMED_BLOCKS = (24, 256, 1_024)
REPEATS = 8

logger = logging.getLogger(__name__)


def packed_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, attention_mask: torch.Tensor | None = None,
                     scaling: float = 1.0, tww_step: StepPlan | None = None,
                     **_: object) -> tuple[torch.Tensor, None]:
    """The function registered with transformers; `tww_step` travels through the model's kwargs."""
    if tww_step is None:
        raise RuntimeError('the language model was called outside a packed step; use '
                           'VideoLanguageModel.step(), or stock_attention() for the stock forward')
    layer, plan = module.layer_idx, tww_step
    rotated = rotate_signed(key[0], *plan.key_table)                           # [h, N, D]
    for place in plan.spans:
        span, own = place.span, slice(place.first, place.last)
        span.block.write(layer, rotated[:, own], value[0, :, own])
        if place.visual is not None and layer in span.summary.layers:
            span.summary.add(layer, key[0, :, own][:, place.visual])
        if span.queries is not None:
            span.queries.add(layer, query[0, :, own])
    return plan.attend(plan, query[0], layer, scaling)[None], None


def choose_backend(name: str, shape: BlockShape, heads: int) -> Attend:
    """The backend by its name: one of `BACKENDS`, 'fixed' or 'auto'.

    Raises ConfigError for one that does not work here.
    """
    if name == 'eager':
        return attend_eager
    if name == 'grouped':
        return unit_by_unit(grouped, grouped)
    if name == 'fused':
        partial = fused(shape.device, shape.dtype)
        return unit_by_unit(partial, partial)
    if name not in ('auto', 'fixed', 'triton'):
        raise ConfigError(f'attention backend: expected auto, fixed or one of '
                          f'{", ".join(BACKENDS)}, got {name!r}')
    partials, packed = _partials(shape), None
    if name == 'triton' or shape.device.type == 'cuda':
        try:
            packed = _packed(shape)
        except ConfigError:
            if name == 'triton':
                raise
    if name == 'auto':
        return _quickest_backend(shape, heads, partials, packed)
    partial = partials.get('fused', grouped)
    return unit_by_unit(partial, partial, packed)


def _quickest_backend(shape: BlockShape, heads: int, partials: Mapping[str, Partial],
                      packed: Packed | None) -> Attend:
    """Chosen at first use, because only the thread that takes the steps has their share of the
    processor."""
    @functools.cache
    def backend() -> Attend:
        chosen = _quickest(shape, heads, packed)
        return unit_by_unit(partials[chosen['short']], partials[chosen['long']],
                            packed if chosen.get('quantized') == 'triton' else None)

    return lambda plan, query, layer, scaling: backend()(plan, query, layer, scaling)


def _partials(shape: BlockShape) -> Mapping[str, Partial]:
    """What works here, by name."""
    try:
        return {'grouped': grouped, 'fused': fused(shape.device, shape.dtype)}
    except ConfigError:
        return {'grouped': grouped}


def _packed(shape: BlockShape) -> Packed:
    """The Triton kernel, tried once; ConfigError where it does not work."""
    wrong = f'head size {shape.head_dim}, which is no multiple of {GROUP}'
    if shape.head_dim % GROUP == 0:
        try:
            from tww_ros.model.kernels import attend_quantized
            block = _noise_block(shape, 1)
            query = torch.ones(shape.kv_heads, 1, 1, shape.head_dim, dtype=shape.dtype,
                               device=shape.device)
            attend_quantized(query, block, 0, 0, 1, 1.0)
        except Exception as error:
            wrong = f'{type(error).__name__}: {error}'
        else:
            return attend_quantized
    raise ConfigError('step.attention: "triton" needs a GPU and the package triton, which comes '
                      f'with torch for CUDA; got {wrong}; take "auto" or "fused"')


@functools.cache
def _quickest(shape: BlockShape, heads: int, packed: Packed | None) -> Mapping[str, str]:
    """Which way is quickest for each kind, timed; logged once."""
    chosen, told = {}, []
    for kind, ways in _ways(shape, heads, packed).items():
        took_ms = dict.fromkeys(ways, float('inf'))
        # In turn, because other work on the machine comes and goes.
        for _ in range(REPEATS):
            for name, way in ways.items():
                took_ms[name] = min(took_ms[name], 1e3 * _seconds(way, shape.device))
        chosen[kind] = best = min(took_ms, key=took_ms.get)
        others = ', '.join(f'{name} {ms:.2f}' for name, ms in took_ms.items() if name != best)
        told.append(f'{kind} {best} {took_ms[best]:.2f} ms{f" ({others})" if others else ""}')
    logger.info('attention on %s, %s: %s', shape.device, shape.dtype, ', '.join(told))
    return chosen


def _ways(shape: BlockShape, heads: int, packed: Packed | None
          ) -> dict[str, dict[str, Callable[[], object]]]:
    """What is timed: one layer over some blocks, by kind and name."""
    options = {'dtype': shape.dtype, 'device': shape.device}
    blocks = [torch.randn(shape.kv_heads, tokens, shape.head_dim, **options)
              for tokens in TIMED_BLOCKS]

    def query(rows: int) -> torch.Tensor:
        return torch.randn(shape.kv_heads, rows, heads // shape.kv_heads, shape.head_dim,
                           **options)

    def over_blocks(partial: Partial, rows: torch.Tensor) -> Callable[[], object]:
        return lambda: [partial(rows, block, block, 1.0, False) for block in blocks]

    ways = {kind: {name: over_blocks(partial, query(rows))
                   for name, partial in _partials(shape).items()}
            for kind, rows in TIMED_ROWS.items()}
    if packed is not None:
        partial, one = _partials(shape).get('fused', grouped), query(1)
        last = TIMED_BLOCKS[-1]
        block = _noise_block(shape, last)
        ways['quantized'] = {
            'triton': lambda: packed(one, block, 0, 0, last, 1.0),
            'read': lambda: partial(one, block.turned_keys(0, 0, last),
                                    block.turned_values(0, 0, last), 1.0, False)}
    return ways


def _noise_block(shape: BlockShape, tokens: int) -> QuantizedBlock:
    shape = replace(shape, layers=1)
    block = KVBlock(shape, capacity=tokens)
    block.write(0, *torch.randn(2, shape.kv_heads, tokens, shape.head_dim,
                                device=shape.device).to(shape.dtype))
    block.commit(tokens, tokens)
    return quantize(block, QuantScheme())


@torch.inference_mode()
def _seconds(way: Callable[[], object], device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    way()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _no_mask(*_: object, **__: object) -> None:
    """Masks are the views' business; the model builds none."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
