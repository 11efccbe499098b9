"""Attention over views: the function that transformers calls in every layer of a packed step.

In: un-rotated queries, keys and values of all spans of the step, [1, heads, N, D], and the step's
plan. Each span writes its rotated keys and values behind its own block, then attends to its view
(parts of other blocks, each with its own shift) and causally to its own block. Out: [1, N, heads,
D]. Spans never see each other except through a view that names the other's block.

    letters   N tokens of the step   T tokens of one span   K keys of one view
              H query heads          G = H / key-value heads

Backends: `eager` expands keys and builds the whole [T, K] mask, the readable reference. `grouped`
multiplies the G queries that share a key-value head at once, part by part: keys and values are
never concatenated, expanded or copied; only the scores are put side by side for one softmax.
Both read one part in one layer at a time, so of a view with quantized parts no more than that is
ever held in full precision.

Registered under the name 'tww' with `AttentionInterface` and `AttentionMaskInterface`; the model
is not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from tww_ros.memory.block import KVBlock
from tww_ros.memory.quantization import Block
from tww_ros.memory.retrieval import KeySummary, QueryTap
from tww_ros.model.positions import rotate

NAME = 'tww'
Table = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Turn:
    """Parts that share one shift, and their query rotation; `blocks` as (block, tokens seen)."""

    query_table: Table
    blocks: list[tuple[Block, int]]


@dataclass
class SpanPlan:
    """Where one span's tokens lie in the step, how they are rotated, and what they attend to.

    The last block of the last turn is the span's own, seen up to and with the span's own tokens.
    mass: float32 [parts + 1], attention mass of the span's last token per part (own block last),
    summed over layers; None when nobody asks. part_of_key: int64 [K], the part of each key in turn
    order. summary collects un-rotated keys of the tokens `visual` (bool [T]), queries un-rotated
    queries.
    """

    first: int
    last: int
    block: KVBlock
    key_table: Table
    turns: list[Turn]
    mass: torch.Tensor | None = None
    part_of_key: torch.Tensor | None = None
    visual: torch.Tensor | None = None
    summary: KeySummary | None = None
    queries: QueryTap | None = None


@dataclass
class StepPlan:
    """All spans of one packed step, and the backend that attends."""

    spans: list[SpanPlan]
    attend: Callable[[SpanPlan, torch.Tensor, int, float], torch.Tensor]


def packed_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, attention_mask: torch.Tensor | None = None,
                     scaling: float = 1.0, tww_step: StepPlan | None = None,
                     **_: object) -> tuple[torch.Tensor, None]:
    """The function registered with transformers; `tww_step` travels through the model's kwargs."""
    if tww_step is None:
        raise RuntimeError('the language model was called outside a packed step; use '
                           'VideoLanguageModel.step(), or stock_attention() for the stock forward')
    layer = module.layer_idx
    for span in tww_step.spans:
        part = slice(span.first, span.last)
        span.block.write(layer, rotate(key[0, :, part], *span.key_table), value[0, :, part])
        if span.visual is not None and layer in span.summary.layers:
            span.summary.add(layer, key[0, :, part][:, span.visual])
        if span.queries is not None:
            span.queries.add(layer, query[0, :, part])
    output = torch.empty_like(query.transpose(1, 2))                           # [1, N, H, D]
    for span in tww_step.spans:
        attended = tww_step.attend(span, query[0, :, span.first:span.last], layer, scaling)
        output[0, span.first:span.last] = attended.transpose(0, 1)
    return output, None


def attend_eager(span: SpanPlan, query: torch.Tensor, layer: int, scaling: float) -> torch.Tensor:
    """Reference: all scores, one explicit lower-right causal mask, one softmax.

    [H, T, D] → [H, T, D].
    """
    heads, tokens, _ = query.shape
    group = heads // span.block.shape.kv_heads
    scores = []
    for turn in span.turns:
        rotated = rotate(query, *turn.query_table)                             # [H, T, D]
        for block, length in turn.blocks:
            keys = block.layer_keys(layer, length).repeat_interleave(group, dim=0)  # [H, n, D]
            scores.append(rotated @ keys.transpose(1, 2) * scaling)            # [H, T, n]
    joined = torch.cat(scores, dim=-1)                                         # [H, T, K]
    total = joined.shape[-1]
    own = torch.arange(total - tokens, total, device=query.device)             # [T] own keys
    hidden = torch.arange(total, device=query.device)[None, :] > own[:, None]  # [T, K]
    joined = joined.masked_fill(hidden, float('-inf'))
    weights = joined.softmax(dim=-1, dtype=torch.promote_types(joined.dtype, torch.float32))
    _add_mass(span, weights[:, -1])
    weights = weights.to(query.dtype)
    output, offset = torch.zeros_like(query), 0                                # [H, T, D]
    for turn in span.turns:
        for block, length in turn.blocks:
            values = block.layer_values(layer, length).repeat_interleave(group, dim=0)  # [H, n, D]
            output += weights[..., offset:offset + length] @ values
            offset += length
    return output


def attend_grouped(span: SpanPlan, query: torch.Tensor, layer: int,
                   scaling: float) -> torch.Tensor:
    """Grouped-query matmuls over the parts as they lie in memory. [H, T, D] → [H, T, D]."""
    heads, tokens, head_dim = query.shape
    kv_heads = span.block.shape.kv_heads
    group = heads // kv_heads
    query = query * scaling
    scores = []
    for turn in span.turns:
        rotated = rotate(query, *turn.query_table).reshape(kv_heads, group * tokens, head_dim)
        scores += [rotated @ block.layer_keys(layer, length).transpose(1, 2)   # [Hkv, G·T, n]
                   for block, length in turn.blocks]
    if tokens > 1:
        # Only the span's own tokens, the last T keys of the last part, can lie in a query's
        # future.
        own = scores[-1].view(kv_heads, group, tokens, -1)[..., -tokens:]      # [Hkv, G, T, T]
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
        own.masked_fill_(future, float('-inf'))
    joined = torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0]       # [Hkv, G·T, K]
    weights = joined.softmax(dim=-1, dtype=torch.promote_types(joined.dtype, torch.float32))
    if span.mass is not None:
        _add_mass(span, weights.view(heads, tokens, -1)[:, -1])
    weights = weights.to(query.dtype)
    output, offset = None, 0
    for turn in span.turns:
        for block, length in turn.blocks:
            share = weights[..., offset:offset + length] @ block.layer_values(layer, length)
            output = share if output is None else output.add_(share)           # [Hkv, G·T, D]
            offset += length
    return output.view(heads, tokens, head_dim)


BACKENDS = {'eager': attend_eager, 'grouped': attend_grouped}


def choose_backend(name: str) -> Callable[[SpanPlan, torch.Tensor, int, float], torch.Tensor]:
    """The backend by its name; 'auto' takes `grouped`, which is right and quick everywhere."""
    return BACKENDS['grouped' if name == 'auto' else name]


def _add_mass(span: SpanPlan, weights: torch.Tensor) -> None:
    """Add the last token's attention weights [H, K], averaged over heads, to its parts."""
    if span.mass is not None:
        span.mass.index_add_(0, span.part_of_key, weights.mean(dim=0).to(span.mass.dtype))


def _no_mask(*_: object, **__: object) -> None:
    """Masks are the views' business; the model builds none."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
