"""Attention backends: queries of a step over the keys of all its views.

In: the plan of a step, un-rotated queries of all its tokens in one layer; the spans' own keys and
values are in their blocks. Out: what each token has attended to, and the attention mass of the
parts for spans that ask. They know nothing of sessions, memory or time.

    eager     one softmax of a span over keys laid side by side, expanded, behind an explicit mask:
              the readable reference
    grouped   unit by unit: two matrix products of all rows, the results joined by log-sum-exp
    fused     the same with torch's own flash attention, which keeps no scores
    triton    `fused`, and quantized blocks as they are packed (`model.kernels`), on a GPU

All but the first copy no keys: the G query heads that share a key-value head are rows of one
product (grouped-query attention without expanding), and so are the tokens of all sessions that
see a block. Results and their log-sum-exps are joined in float32. A quantized block is met in its
own basis: the query is turned once, and once the sum of values is turned back, so that no key is
(q·(Rt) = (Rᵀq)·t); of such a block one tile of one layer is in full precision at a time.

    letters   N tokens of the step   R rows   r rows of one unit   K its keys   D head size
              H query heads = h key-value heads × G that share one   n tokens of a group
              U units that one token sees   P results of a group
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from tww_ros.errors import ConfigError
from tww_ros.memory.quantization import QuantizedBlock, turn, turn_back
from tww_ros.model.planning import Attend, Group, StepPlan, Unit
from tww_ros.model.positions import rotate, rotate_signed

# In: queries [h, r, G, D], keys and values [h, K, D], scaling, whether row i sees keys up to i
# only. Out: [h, r · G, D] and the log-sum-exp of the scores [h, r · G] float32.
Partial = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool],
                   tuple[torch.Tensor, torch.Tensor]]
# The same for a quantized block, as it is packed: turned queries, block, layer, its tokens from
# and to, scaling. Results are turned.
Packed = Callable[[torch.Tensor, QuantizedBlock, int, int, int, float],
                  tuple[torch.Tensor, torch.Tensor]]
# Results of a long span that are held before they are joined.
HELD = 16


def attend_eager(plan: StepPlan, query: torch.Tensor, layer: int, scaling: float) -> torch.Tensor:
    """Reference: [H, N, D] → [N, H, D]."""
    outputs = []
    for place in plan.spans:
        span, own = place.span, query[:, place.first:place.last]               # [H, T, D]
        group = len(query) // span.block.shape.kv_heads
        parts = [*((part.block, part.length, part.shift) for part in span.view.parts),
                 (span.block, span.block.length + own.shape[1], 0)]
        scores = []
        for block, length, shift in parts:
            table = plan.rope.table(span.run.positions - shift, query.dtype)
            keys = block.layer_keys(layer, length).repeat_interleave(group, 0)  # [H, K, D]
            scores.append(rotate(own, *table) @ keys.transpose(1, 2) * scaling)
        joined = torch.cat(scores, -1).to(_accurate(query.dtype))              # [H, T, all keys]
        tokens, total = joined.shape[1:]
        future = torch.ones(tokens, total, dtype=torch.bool, device=query.device).triu(
            total - tokens + 1)                                                # lower right
        weights = joined.masked_fill(future, float('-inf')).softmax(-1)
        output = torch.zeros_like(own)                                         # [H, T, D]
        for number, ((block, length, _), weight) in enumerate(
                zip(parts, weights.split([length for _, length, _ in parts], -1), strict=True)):
            values = block.layer_values(layer, length).repeat_interleave(group, 0)
            output += weight.to(values.dtype) @ values
            if place.mass_at:
                plan.mass[place.mass_at + number] += weight[:, -1].sum(-1).mean()
        outputs.append(output)
    return torch.cat(outputs, 1).transpose(0, 1)


def unit_by_unit(short: Partial, long: Partial, packed: Packed | None = None) -> Attend:
    """A backend from what attends to one unit, for the group of short spans and for long ones.

    packed: for quantized units of short spans; without it their levels are read out first.
    """
    def attend(plan: StepPlan, query: torch.Tensor, layer: int, scaling: float) -> torch.Tensor:
        """[H, N, D] → [N, H, D]."""
        heads, count, head_dim = query.shape
        kv_heads = plan.spans[0].span.block.shape.kv_heads
        query = query.view(kv_heads, -1, count, head_dim).transpose(1, 2)      # [h, N, G, D]
        rows = rotate_signed(query.index_select(1, plan.row_tokens), *plan.row_table)
        if plan.turned < rows.shape[1]:
            rows[:, plan.turned:] = turn(rows[:, plan.turned:])
        rows = rows.split(plan.row_counts, 1)                                  # [h, r, G, D] each
        output = query.new_empty(count, kv_heads, heads // kv_heads, head_dim)  # [N, h, G, D]
        for group in plan.groups:
            attended = (
                _attend_long(plan, group, rows, layer, scaling, long) if group.long else
                _attend_short(plan, group, rows, layer, scaling, short, packed))
            output.index_copy_(0, group.tokens, attended.transpose(0, 1).to(output.dtype))
        return output.flatten(1, 2)
    return attend


def _attend_short(plan: StepPlan, group: Group, rows: Sequence[torch.Tensor], layer: int,
                  scaling: float, partial: Partial, packed: Packed | None) -> torch.Tensor:
    """Spans of few tokens: all results side by side, gathered for each token. → [h, n, G, D]."""
    heads, _, size, head_dim = rows[0].shape
    found = [packed(rows[unit.rows], unit.block, layer, unit.first, unit.last, scaling)
             if packed is not None and unit.turned else
             partial(rows[unit.rows], *_tile(unit, layer), scaling, unit.square)
             for unit in group.units]
    results = torch.cat([result for result, _ in found], 1)                    # [h, P · G, D]
    if group.turned < len(found):
        turned = sum(result.shape[1] for result, _ in found[:group.turned])
        results[:, turned:] = turn_back(results[:, turned:])
    lses = [lse for _, lse in found]
    tokens = len(group.tokens)
    if group.results is not None:
        # Result P, of tokens that have fewer units than others, weighs nothing.
        lses.append(lses[0].new_full((heads, size), float('-inf')))
        results = torch.cat((results, results.new_zeros(heads, size, head_dim)), 1)
    lse = torch.cat(lses, 1).unflatten(1, (-1, size))                          # [h, P, G]
    results = results.unflatten(1, (-1, size))                                 # [h, P, G, D]
    if group.results is not None:
        lse, results = (x.index_select(1, group.results) for x in (lse, results))
    lse = lse.unflatten(1, (tokens, -1))                                       # [h, n, U, G]
    total = lse.logsumexp(2, keepdim=True)                                     # [h, n, 1, G]
    weights = (lse - total).exp_()
    if group.slots is not None:
        _add_mass(plan, group, rows, layer, scaling, weights, total[:, :, 0])
    results = results.unflatten(1, (tokens, -1))                               # [h, n, U, G, D]
    return (results * weights[..., None]).sum(2)


def _attend_long(plan: StepPlan, group: Group, rows: Sequence[torch.Tensor], layer: int,
                 scaling: float, partial: Partial) -> torch.Tensor:
    """One span of many tokens: every unit has the same rows. → [h, T, G, D]."""
    size = rows[0].shape[2]
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain, last = None, []
    for number, unit in enumerate(group.units):
        if number == group.turned:
            plain, held = _join(held), []
        result = partial(rows[unit.rows], *_tile(unit, layer), scaling, unit.square)
        if group.slots is not None:
            last.append(result[1][:, -size:])                                  # [h, G]
        held.append(result)
        if len(held) == HELD:
            held = [_join(held)]
    attended, lse = _join(held)
    if plain is not None:
        attended, _ = _join([plain, (turn_back(attended), lse)])
    if group.slots is not None:
        ends = torch.stack(last, 1)[:, None]                                   # [h, 1, U, G]
        total = ends.logsumexp(2, keepdim=True)
        _add_mass(plan, group, rows, layer, scaling, (ends - total).exp_(), total[:, :, 0])
    return attended.unflatten(1, (-1, size))


def _join(found: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Results over disjoint keys as one over all of them: [h, T · G, D], [h, T · G] float32."""
    if len(found) == 1:
        return found[0]
    lses = torch.stack([lse for _, lse in found])
    lse = lses.logsumexp(0)
    weights = (lses - lse).exp_()[..., None]
    joined = found[0][0] * weights[0]
    for (result, _), weight in zip(found[1:], weights[1:], strict=True):
        joined.addcmul_(result.to(joined.dtype), weight)
    return joined, lse


def _add_mass(plan: StepPlan, group: Group, rows: Sequence[torch.Tensor], layer: int,
              scaling: float, weights: torch.Tensor, total: torch.Tensor) -> None:
    """Count attention weights, averaged over heads: of units [h, n, U, G]; in pages, of keys.

    total: log-sum-exp of all scores of a token [h, n, G].
    """
    found = [weights.mean((0, 3)).flatten()]                                   # [n · U]
    heads_log = math.log(weights.shape[0] * weights.shape[3])
    for some in group.pages:
        lse = total if some.tokens is None else total.index_select(1, some.tokens)
        # Sums over heads are then averages; two sums, because one over both axes is slow.
        minus = -(lse.flatten(1)[..., None] + heads_log)                       # [h, r · G, 1]
        scores = []
        for unit in some.units:
            query = rows[unit.rows].flatten(1, 2)[:, -minus.shape[1]:]         # [h, r · G, D]
            keys = unit.block.layer_keys(layer, unit.last)                     # [h, K, D]
            scores.append(torch.baddbmm(minus, query.to(minus.dtype),
                                        keys.transpose(1, 2).to(minus.dtype), alpha=scaling))
        shares = torch.cat(scores, 2).exp_().unflatten(1, (-1, lse.shape[2]))  # [h, r, G, K]
        found.append(shares.sum(2).sum(0).flatten())                           # [r · K]
    plan.mass.index_add_(0, group.slots, torch.cat(found).to(plan.mass.dtype))


def _tile(unit: Unit, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [h, K, D] of a unit; of a quantized block in its own basis."""
    block, first, last = unit.block, unit.first, unit.last
    if unit.turned:
        return block.turned_keys(layer, first, last), block.turned_values(layer, first, last)
    keys, values = block.layer_keys(layer, last), block.layer_values(layer, last)
    return (keys[:, first:], values[:, first:]) if first else (keys, values)


def grouped(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float,
            square: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A `Partial` of two matrix products."""
    rows, size = query.shape[1:3]
    scores = query.flatten(1, 2) * scaling @ keys.transpose(1, 2)              # [h, r · G, K]
    scores = scores.to(_accurate(scores.dtype))
    if square:
        future = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
        scores.masked_fill_(future.repeat_interleave(size, 0), float('-inf'))
    lse = scores.logsumexp(-1)
    weights = scores.sub_(lse[..., None]).exp_()
    return weights.to(values.dtype) @ values, lse


def fused(device: torch.device, dtype: torch.dtype) -> Partial:
    """A `Partial` of torch's flash attention on a device; ConfigError where it has none.

    The operators are torch's own but not its public interface, which keeps the log-sum-exp to
    itself; so one product is tried first.
    """
    flash = _flash(device, dtype)

    def partial(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float,
                square: bool) -> tuple[torch.Tensor, torch.Tensor]:
        heads, rows, size, head_dim = query.shape
        if not square:
            result, lse = flash(query.reshape(1, heads, rows * size, head_dim),
                                keys.unsqueeze(0), values.unsqueeze(0), False, scaling)
            return result.squeeze(0), lse.squeeze(0)
        # Heads that share keys are heads of one batch entry: no copy of the keys, stride 0.
        keys, values = (x[:, None].expand(-1, size, -1, -1) for x in (keys, values))
        result, lse = flash(query.transpose(1, 2), keys, values, True, scaling)  # [h, G, T, D]
        return result.transpose(1, 2).flatten(1, 2), lse.transpose(1, 2).flatten(1, 2)

    try:
        with torch.inference_mode():
            query = torch.ones(1, 2, 2, 32, dtype=dtype, device=device)        # [h, r, G, D]
            keys = query[:, :, 0]                                              # [h, K, D]
            for square in (False, True):
                result, lse = partial(query, keys, keys, 1.0, square)
                if result.shape != (1, 4, 32) or lse.shape != (1, 4):
                    raise RuntimeError(f'got results of shape {tuple(result.shape)} and '
                                       f'log-sum-exps of shape {tuple(lse.shape)}')
    except (AttributeError, RuntimeError) as error:
        raise ConfigError(f'step.attention: "fused" needs torch\'s flash attention for {dtype} on '
                          f'{device}, and torch {torch.__version__} has none that works '
                          f'({error}); take "auto" or "grouped"') from error
    return partial


def _flash(device: torch.device, dtype: torch.dtype) -> Callable[..., tuple]:
    """Flash attention over [batch, heads, tokens, D]: results, and log-sum-exps in float32."""
    ops = torch.ops.aten

    def on_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scaling: float
               ) -> tuple:
        return ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scaling)

    def on_cuda(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scaling: float
                ) -> tuple:
        return ops._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False,
                                                       scale=scaling)[:2]

    def on_cuda_in_full(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool,
                        scaling: float) -> tuple:
        result, lse, *_ = ops._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scaling)
        # Padded to a multiple of 32 rows.
        return result, lse[..., :q.shape[2]]

    if device.type == 'cpu':
        return on_cpu
    return on_cuda if dtype in (torch.float16, torch.bfloat16) else on_cuda_in_full


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
