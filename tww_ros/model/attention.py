"""Attention over views: the function that transformers calls in every layer of a packed step.

In: un-rotated queries, keys and values of all spans of the step, [1, heads, N, D], and the step's
plan (`model.planning`). Every span's rotated keys and values are written behind its own block,
then a backend (`model.attending`) attends, each span to its view and causally to its own block.
Out: [1, N, heads, D]. Spans never see each other except through a view that names the other's
block.

Which backend: the one that is told; `fixed`, the one that is best by what is known beforehand; or
`auto`, the quickest here: each is timed once for a device, a dtype and a shape, short and long
spans apart, and one line is logged. Backends round differently, so a run that must come out the
same again takes `fixed`.

Registered under the name 'tww' with `AttentionInterface` and `AttentionMaskInterface`; the model
is not changed.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from tww_ros.errors import ConfigError
from tww_ros.memory.block import BlockShape
from tww_ros.model.attending import Partial, attend_eager, fused, grouped, unit_by_unit
from tww_ros.model.planning import Attend, StepPlan
from tww_ros.model.positions import rotate_signed

NAME = 'tww'
BACKENDS = ('eager', 'grouped', 'fused')
# What is timed: one token, and a chunk of reading, over blocks of so many tokens.
TIMED_ROWS = {'short': 1, 'long': 64}
TIMED_BLOCKS = (24, 256, 1_024)
REPEATS = 5

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
    if name == 'fused':
        partial = fused(shape.device, shape.dtype)
        return unit_by_unit(partial, partial)
    partials = _partials(shape)
    if name == 'auto':
        return unit_by_unit(*(partials[chosen] for chosen in _quickest(shape, heads)))
    if name == 'fixed':
        name = 'fused' if 'fused' in partials else 'grouped'
    if name not in partials:
        raise ConfigError(f'attention backend: expected auto, fixed or one of '
                          f'{", ".join(BACKENDS)}, got {name!r}')
    return unit_by_unit(partials[name], partials[name])


def _partials(shape: BlockShape) -> Mapping[str, Partial]:
    """What works here, by name."""
    try:
        return {'grouped': grouped, 'fused': fused(shape.device, shape.dtype)}
    except ConfigError:
        return {'grouped': grouped}


@functools.cache
def _quickest(shape: BlockShape, heads: int) -> tuple[str, str]:
    """Names of the backends for short and long spans, timed; logged once."""
    partials, chosen, told = _partials(shape), [], []
    for kind, rows in TIMED_ROWS.items():
        took_ms = {name: 1e3 * _seconds(partial, shape, heads, rows)
                   for name, partial in partials.items()}
        best = min(took_ms, key=took_ms.get)
        chosen.append(best)
        others = ', '.join(f'{name} {ms:.2f}' for name, ms in took_ms.items() if name != best)
        told.append(f'{kind} spans {best} {took_ms[best]:.2f} ms'
                    f'{f" ({others})" if others else ""}')
    logger.info('attention on %s, %s: %s', shape.device, shape.dtype, ', '.join(told))
    return chosen[0], chosen[1]


@torch.inference_mode()
def _seconds(partial: Partial, shape: BlockShape, heads: int, rows: int) -> float:
    """Of one layer over some blocks: the best of a few."""
    options = {'dtype': shape.dtype, 'device': shape.device}
    query = torch.randn(shape.kv_heads, rows, heads // shape.kv_heads, shape.head_dim, **options)
    blocks = [torch.randn(shape.kv_heads, tokens, shape.head_dim, **options)
              for tokens in TIMED_BLOCKS]
    best = float('inf')
    for _ in range(1 + REPEATS):
        if shape.device.type == 'cuda':
            torch.cuda.synchronize(shape.device)
        start = time.perf_counter()
        for block in blocks:
            partial(query, block, block, 1.0, False)
        if shape.device.type == 'cuda':
            torch.cuda.synchronize(shape.device)
        best = min(best, time.perf_counter() - start)
    return best


def _no_mask(*_: object, **__: object) -> None:
    """Masks are the views' business; the model builds none."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
