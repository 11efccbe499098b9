"""The training forward: many planned samples in one pass of the stock Qwen3-VL classes.

In: Plans. Out: logits of the tokens that are learnt, with gradients. Linear layers see all tokens
of all samples as one row, so nothing is padded there; attention is done over bundles of spans that
share a view, those of similar size side by side: their keys are gathered, rotated to their places
in that view, and attended to. Same rules, positions and result as the engine's packed step; what
differs is that every span of a stream is computed at once, because the text is known.

    letters   N tokens   S bundles of a group   T tokens of one   K its keys, own included
              H query heads   D head size   V vision tokens   E embedding size
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Qwen3VLForConditionalGeneration,
    Qwen3VLTextConfig,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextMLP, Qwen3VLTextRMSNorm

from tww_ros.model.attention import NAME as ENGINE_ATTENTION
from tww_ros.model.positions import MRope, rotate
from tww_ros.training.layout import IGNORED, Plan
from tww_ros.video.pixels import to_pixels

TEXT_NAME, VISION_NAME = 'tww_training', 'tww_equal_images'
# Spans share a group while this share of its scores, at most, is padding.
WASTE = 0.35


@dataclass(eq=False)
class Group:
    """S bundles of similar size. mask: bool [S, 1, T, K], which of its keys each token sees."""

    mask: torch.Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(S, T, K)."""
        bundles, _, tokens, keys = self.mask.shape
        return bundles, tokens, keys


@dataclass(eq=False)
class Batch:
    """What one forward takes. chosen: int64, the tokens whose successor is learnt; targets: ids.

    queries: int64 [sum of S·T], keys: int64 [sum of S·K]: tokens of all groups, one behind the
    other; key_table: the keys' rotations to their places, cos and sin [sum of S·K, 1, D]. origin:
    int64 [N], where each token's attention result lies among the groups' results, laid end to
    end. For reports: spans: int64, the span that each learnt token is in; final: bool, whether
    it belongs to an answer proper; what: per span, as in Plan.
    """

    ids: torch.Tensor
    visual: torch.Tensor
    pixels: torch.Tensor | None
    grid: torch.Tensor | None
    query_table: tuple[torch.Tensor, torch.Tensor]
    groups: list[Group]
    queries: torch.Tensor
    keys: torch.Tensor
    key_table: tuple[torch.Tensor, torch.Tensor]
    origin: torch.Tensor
    chosen: torch.Tensor
    targets: torch.Tensor
    spans: torch.Tensor
    final: torch.Tensor
    what: list[str]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        def move(value: object) -> object:
            if isinstance(value, torch.Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, tuple):
                return tuple(move(part) for part in value)
            if isinstance(value, list) and value and isinstance(value[0], Group):
                return [Group(*(move(getattr(group, entry.name)) for entry in fields(Group)))
                        for group in value]
            return value
        return Batch(*(move(getattr(self, entry.name)) for entry in fields(Batch)))


class Rotations:
    """cos and sin of integer positions, looked up: a batch has many tokens at few positions."""

    def __init__(self, text_config: Qwen3VLTextConfig) -> None:
        rope = MRope(text_config, torch.device('cpu'))
        self._inv_freq = torch.from_numpy(rope.inv_freq)                         # [D/2] float64
        self._axis = torch.from_numpy(rope.axis)
        self._column = torch.arange(len(self._inv_freq))
        self._grow(4_096)

    def table(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [3, …] → cos, sin [..., D]."""
        if positions.numel() and int(positions.max()) >= len(self._cos):
            self._grow(2 * int(positions.max()))
        rows = positions[self._axis].movedim(0, -1)                              # [..., D/2]
        cos, sin = self._cos[rows, self._column], self._sin[rows, self._column]
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)

    def _grow(self, limit: int) -> None:
        angles = torch.arange(limit, dtype=torch.float64)[:, None] * self._inv_freq
        self._cos, self._sin = angles.cos().float(), angles.sin().float()        # [limit, D/2]


def collate(plans: Sequence[Plan], rotations: Rotations, *, min_pixels: int, max_pixels: int
            ) -> Batch:
    """Put plans behind each other."""
    offset, bundles, spans, what = 0, [], [], []
    for one in plans:
        bundles += _bundles(one, offset)
        for span, name in zip(one.spans, one.what, strict=True):
            spans += [len(what)] * (span.last - span.first)
            what.append(name)
        offset += len(one)
    positions = np.concatenate([p for one in plans for p in one.positions], axis=1)    # [3, N]
    labels = torch.tensor([label for one in plans for label in one.labels])
    chosen = (labels != IGNORED).nonzero()[:, 0]
    groups, queries, keys, places, origin = _groups(bundles, positions, offset)
    cos, sin = rotations.table(torch.from_numpy(places))
    patches = [patch for one in plans for patch in one.patches]
    pixels = grid = None
    if patches:
        made = [to_pixels(patch.frames, min_pixels=min_pixels, max_pixels=max_pixels)
                for patch in patches]
        pixels = torch.from_numpy(np.concatenate([one.values for one in made]))
        grid = torch.tensor([[1, one.grid_h, one.grid_w] for one in made])
    return Batch(
        torch.tensor([i for one in plans for i in one.ids]),
        torch.tensor([v for one in plans for v in one.visual]), pixels, grid,
        rotations.table(torch.from_numpy(positions)), groups, torch.from_numpy(queries),
        torch.from_numpy(keys), (cos[:, None], sin[:, None]), origin, chosen, labels[chosen],
        torch.tensor(spans)[chosen],
        torch.tensor([f for one in plans for f in one.final])[chosen], what)


@dataclass(eq=False)
class _Bundle:
    """Spans with one view, computed as one: own tokens int64 [T]; mask bool [T, T] among them."""

    own: np.ndarray
    keys: np.ndarray
    places: np.ndarray
    mask: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(T, K)."""
        return len(self.own), len(self.keys) + len(self.own)


def _bundles(plan: Plan, offset: int) -> list[_Bundle]:
    members: dict[int, list[int]] = {}
    for number, span in enumerate(plan.spans):
        members.setdefault(id(span.view), []).append(number)
    bundles = []
    for numbers in members.values():
        spans = [plan.spans[number] for number in numbers]
        starts = np.cumsum([0, *(span.last - span.first for span in spans)])
        mask = np.zeros((starts[-1], starts[-1]), bool)
        for row, span in enumerate(spans):
            own = slice(starts[row], starts[row + 1])
            mask[own, own] = np.tri(span.last - span.first, dtype=bool)
            for seen in span.sees:
                column = numbers.index(seen)
                mask[own, starts[column]:starts[column + 1]] = True
        own = np.concatenate([np.arange(span.first, span.last) for span in spans])
        view = spans[0].view
        bundles.append(_Bundle(own + offset, view.keys + offset, view.places, mask))
    return bundles


def _groups(bundles: list[_Bundle], positions: np.ndarray, count: int
            ) -> tuple[list[Group], np.ndarray, np.ndarray, np.ndarray, torch.Tensor]:
    """Bundles of similar size side by side, padded to the largest.

    Returns groups, queries, keys, places of the keys [3, sum of S·K], and origin.
    """
    order = sorted(bundles, key=lambda bundle: (-(-bundle.size[0] // 8), bundle.size[1]))
    groups, queries, keys, places = [], [], [], []
    origin, at = torch.zeros(count, dtype=torch.long), 0
    while order:
        most_t = most_k = used = taken = 0
        for bundle in order[:256]:
            tokens, total = bundle.size
            t, k = max(most_t, tokens), max(most_k, total)
            if taken and used + tokens * total < (1 - WASTE) * (taken + 1) * t * k:
                break
            most_t, most_k, used, taken = t, k, used + tokens * total, taken + 1
        members, order = order[:taken], order[taken:]
        queries_at = np.zeros((taken, most_t), np.int64)
        keys_at = np.zeros((taken, most_k), np.int64)
        places_at = np.zeros((3, taken, most_k), np.int64)
        mask = np.zeros((taken, 1, most_t, most_k), bool)
        for row, bundle in enumerate(members):
            tokens, total = bundle.size
            seen = len(bundle.keys)
            queries_at[row, :tokens] = bundle.own
            keys_at[row, :total] = np.concatenate((bundle.keys, bundle.own))
            places_at[:, row, :total] = np.concatenate((bundle.places, positions[:, bundle.own]),
                                                       axis=1)
            mask[row, 0, :tokens, :seen] = True
            mask[row, 0, :tokens, seen:total] = bundle.mask
            # A padded query looks at one key, so that its softmax is finite.
            mask[row, 0, tokens:, 0] = True
            origin[bundle.own] = torch.arange(at + row * most_t, at + row * most_t + tokens)
        groups.append(Group(torch.from_numpy(mask)))
        queries.append(queries_at.reshape(-1))
        keys.append(keys_at.reshape(-1))
        places.append(places_at.reshape(3, -1))
        at += taken * most_t
    return (groups, np.concatenate(queries), np.concatenate(keys),
            np.concatenate(places, axis=1), origin)


def _attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
            attention_mask: torch.Tensor | None = None, scaling: float = 1.0,
            tww_batch: Batch | None = None, **_: object) -> tuple[torch.Tensor, None]:
    """Registered with transformers. query [1, H, N, D] → [1, N, H, D]."""
    kind, batch = query.dtype, tww_batch
    cos, sin = (table.to(kind) for table in batch.query_table)
    rotated = rotate(query[0], cos, sin).transpose(0, 1) * scaling               # [N, H, D]
    # One gather for all groups: the gradient of each would be as long as all tokens.
    q = _pick(rotated, batch.queries)                                            # [sum S·T, H, D]
    k = rotate(_pick(key[0].transpose(0, 1), batch.keys),
               *(table.to(kind) for table in batch.key_table))                  # [sum S·K, Hkv, D]
    v = _pick(value[0].transpose(0, 1), batch.keys)
    sizes = [group.sizes for group in batch.groups]
    results = [
        _softmax_attention(*(x.unflatten(0, (bundles, -1)).transpose(1, 2) for x in parts),
                           group.mask).transpose(1, 2).flatten(0, 1)             # [S·T, H, D]
        for group, (bundles, _, _), *parts in zip(
            batch.groups, sizes, q.split([s * t for s, t, _ in sizes]),
            k.split([s * n for s, _, n in sizes]), v.split([s * n for s, _, n in sizes]),
            strict=True)]
    return _pick(torch.cat(results), batch.origin)[None], None


def _pick(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """rows[index]; as an embedding, whose gradient is summed far quicker than an index's."""
    flat = functional.embedding(index, rows.flatten(1))
    return flat.unflatten(-1, rows.shape[1:])


def _softmax_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                       mask: torch.Tensor | None) -> torch.Tensor:
    """Plain products: on the CPU their gradients are several times as quick as flash attention's.

    query [S, H, T, D], key and value [S, Hkv, K, D], mask bool [S, 1, T, K] → [S, H, T, D].
    """
    kv_heads, tokens = key.shape[1], query.shape[2]
    grouped = query.unflatten(1, (kv_heads, -1)).flatten(2, 3)                   # [S, Hkv, G·T, D]
    scores = (grouped @ key.transpose(2, 3)).unflatten(2, (-1, tokens))         # [S, Hkv, G, T, K]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], float('-inf'))
    weights = scores.softmax(-1).to(value.dtype)
    out = weights.flatten(2, 3) @ value                                          # [S, Hkv, G·T, D]
    return out.unflatten(2, (-1, tokens)).flatten(1, 2)


def _equal_images(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                  value: torch.Tensor, attention_mask: torch.Tensor | None = None,
                  scaling: float = 1.0, tww_patches: int = 0,
                  **_: object) -> tuple[torch.Tensor, None]:
    """Vision attention for images of one size, all in one call: [1, H, images · n, D]."""
    heads, total, size = query.shape[1:]
    q, k, v = (x[0].view(heads, total // tww_patches, tww_patches, size).transpose(0, 1)
               for x in (query, key, value))                                    # [images, H, n, D]
    out = _softmax_attention(q * scaling, k, v, None)
    return out.transpose(1, 2).reshape(1, total, heads, size), None


AttentionInterface.register(TEXT_NAME, _attend)
AttentionInterface.register(VISION_NAME, _equal_images)
AttentionMaskInterface.register(TEXT_NAME, lambda *_, **__: None)


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """Norms, rotations and MLPs of the text model compiled, which needs a C++ compiler: a training
    step on the CPU is then a seventh shorter, after a minute of compiling."""
    global rotate
    plain = Qwen3VLTextRMSNorm.forward, Qwen3VLTextMLP.forward, rotate
    made = [torch.compile(function, dynamic=True) for function in plain]
    Qwen3VLTextRMSNorm.forward, Qwen3VLTextMLP.forward, rotate = made
    try:
        yield
    finally:
        Qwen3VLTextRMSNorm.forward, Qwen3VLTextMLP.forward, rotate = plain


@contextlib.contextmanager
def training_attention(model: Qwen3VLForConditionalGeneration) -> Iterator[None]:
    """The model's attention as training needs it, and back to the engine's afterwards."""
    text, vision = model.config.text_config, model.config.vision_config
    before, embed = vision._attn_implementation, model.model.visual.patch_embed
    convolution = embed.proj
    text._attn_implementation, vision._attn_implementation = TEXT_NAME, VISION_NAME
    embed.proj = _FlatConvolution(convolution)
    try:
        yield
    finally:
        text._attn_implementation, vision._attn_implementation = ENGINE_ATTENTION, before
        embed.proj = convolution


class _FlatConvolution(torch.nn.Module):
    """A convolution whose kernel is the whole input, as the product that it is: the 3D convolution
    took a fifth of a training step on the CPU. Shares the weights."""

    def __init__(self, convolution: torch.nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def forward(model: Qwen3VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Logits [learnt tokens, vocabulary]. Inside `training_attention`."""
    language_model = model.model.language_model
    embeds = language_model.embed_tokens(batch.ids)                              # [N, E]
    mask = deepstack = None
    device = batch.ids.device
    if batch.pixels is not None:
        grid = batch.grid
        patches = int(grid[0].prod())
        if not (grid == grid[0]).all():
            raise ValueError('expected images of one size in a batch; group the samples by size')
        seen = model.model.visual(batch.pixels, grid, tww_patches=patches,
                                  cu_seqlens=torch.tensor([0, len(batch.pixels)], device=device))
        mask, deepstack = batch.visual[None], list(seen.deepstack_features)
        embeds = embeds.index_put((batch.visual.nonzero()[:, 0],),
                                  seen.pooler_output.to(embeds.dtype))
    hidden = language_model(
        inputs_embeds=embeds[None],
        position_ids=torch.zeros(3, 1, len(batch.ids), dtype=torch.long,
                                 device=device),
        visual_pos_masks=mask, deepstack_visual_embeds=deepstack, use_cache=False,
        tww_batch=batch).last_hidden_state[0]                                    # [N, E]
    return model.lm_head(hidden[batch.chosen])
