"""Retrieval: which segments a question is about, when not all of memory fits into its view.

In: rankings of segments (by the words of their notes, by their keys), the question's words. Out:
one ranking, best first. It knows nothing of text indexes, models or budgets.

    by words   the store's index of notes (FTS5): 'red ball' finds every note that names it
    by keys    how strongly the question's own queries match a segment's mean keys, layer by layer

Rankings are joined by reciprocal rank (Cormack et al., 2009), because the worth of words and a
product of keys have no common scale. Words such as 'first' or 'last' say which end of a run of
equally good notes is meant.

    letters   L layers   H key-value heads   G queries that share one   D head size   T tokens
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

# Of reciprocal rank fusion: how much the first places count above the later ones.
RANK_OFFSET = 60
FIRST_WORDS = frozenset('first earliest initially beginning start originally'.split())
LAST_WORDS = frozenset('last latest newest recently now current currently'.split())
# Layers whose keys are summed up for each segment; more cost memory and add little.
SUMMARY_LAYERS = 4
# Of a question, the tokens whose queries count; and segments that are scored at once.
TAPPED = 32
ROWS = 512


def asks_for_first(text: str) -> bool:
    """Whether a question is about the oldest of what matches; otherwise the newest is taken."""
    words = set(re.findall(r'[a-z]+', text.lower()))
    return bool(words & FIRST_WORDS) and not words & LAST_WORDS


def fuse(rankings: Iterable[Sequence[int]], limit: int) -> list[int]:
    """Segment ids, best first, at most `limit`; ties go to the ranking named first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, segment_id in enumerate(ranking):
            scores[segment_id] = scores.get(segment_id, 0.0) + 1.0 / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda key: -scores[key])[:limit]


def summary_layers(layers: int) -> tuple[int, ...]:
    """The layers that are summed up: spread over the upper three quarters, where words meet
    pictures."""
    first = layers // 4
    count = min(SUMMARY_LAYERS, layers - first)
    return tuple(first + (layers - first - 1) * i // max(1, count - 1) for i in range(count))


class SummaryState(NamedTuple):
    """What a summary held at one moment."""

    sums: dict[int, torch.Tensor]
    tokens: int


@dataclass
class KeySummary:
    """Mean of the un-rotated keys of one segment's vision tokens, in some layers.

    Un-rotated, because a question must find a segment wherever it stands.
    """

    layers: tuple[int, ...]
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    tokens: int = 0
    # Of the step under way: it may fail and be done again.
    _fresh: dict[int, torch.Tensor] = field(default_factory=dict)
    _fresh_tokens: int = 0

    def add(self, layer: int, keys: torch.Tensor) -> None:
        """Take the keys [H, T, D] of one layer; every layer gets the same tokens."""
        if layer in self.layers:
            self._fresh[layer] = keys.sum(1, dtype=torch.float32)               # [H, D]
            self._fresh_tokens = keys.shape[1]

    def commit(self) -> None:
        """Count what was taken in the step that has ended."""
        for layer, total in self._fresh.items():
            self.sums[layer] = self.sums[layer] + total if layer in self.sums else total
        self.tokens += self._fresh_tokens
        self._fresh, self._fresh_tokens = {}, 0

    def state(self) -> SummaryState:
        """To come back to with `restore`."""
        return SummaryState(dict(self.sums), self.tokens)

    def restore(self, state: SummaryState) -> None:
        """Forget what came since."""
        self.sums, self.tokens = dict(state.sums), state.tokens
        self._fresh, self._fresh_tokens = {}, 0

    def mean(self) -> torch.Tensor | None:
        """float32 [L, H, D]; None before the first token."""
        if not self.tokens:
            return None
        return torch.stack([self.sums[layer] for layer in self.layers]) / self.tokens


@dataclass
class QueryTap:
    """The un-rotated queries of a question's last tokens, in the layers that are summed up."""

    layers: tuple[int, ...]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, layer: int, queries: torch.Tensor) -> None:
        """Keep the queries [H·G, T, D] of one layer."""
        if layer in self.layers:
            queries = queries[:, -TAPPED:].to(torch.float32)
            # A long question comes in several steps.
            if (earlier := self.seen.get(layer)) is not None:
                queries = torch.cat((earlier, queries), 1)[:, -TAPPED:]
            self.seen[layer] = queries

    def scores(self, means: torch.Tensor) -> torch.Tensor:
        """[N] of segments with mean keys [N, L, H, D]: the best token's match, averaged over heads
        and layers."""
        heads, head_dim = means.shape[2:]
        total = torch.zeros(len(means), device=means.device)
        for index, layer in enumerate(self.layers):
            queries = self.seen[layer]                                          # [H·G, T, D]
            grouped = queries.reshape(heads, -1, queries.shape[1], head_dim)    # [H, G, T, D]
            keys = means[:, index].to(queries.device, torch.float32)            # [N, H, D]
            # What all segments share says nothing about any of them.
            keys = keys - keys.mean(0, keepdim=True)
            for first in range(0, len(keys), ROWS):
                part = slice(first, first + ROWS)
                match = torch.einsum('hgtd,nhd->nhgt', grouped, keys[part])
                total[part] += match.amax(-1).mean((1, 2)).to(total.device)
        return total / (len(self.layers) * head_dim ** 0.5)


class KeyRows(NamedTuple):
    """Segments and their mean keys [N, L, H, D] at one moment."""

    ids: list[int]
    means: torch.Tensor | None

    def ranking(self, tap: QueryTap) -> list[int]:
        """All segments, best match first."""
        if not self.ids:
            return []
        return [self.ids[row] for row in tap.scores(self.means).argsort(descending=True).tolist()]


class KeyTable:
    """Mean keys of segments, row by row, in the host's memory; grows by doubling."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._rows: dict[int, int] = {}
        self._means: torch.Tensor | None = None                                 # [rows, L, H, D]

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, segment_id: int, mean: torch.Tensor) -> None:
        """Add the mean keys [L, H, D] of a segment; half precision is plenty."""
        count = len(self._ids)
        if self._means is None or count == len(self._means):
            grown = torch.empty(max(64, 2 * count), *mean.shape, dtype=torch.float16)
            if self._means is not None:
                grown[:count] = self._means[:count]
            self._means = grown
        self._means[count] = mean
        self._rows[segment_id] = count
        self._ids.append(segment_id)

    def remove(self, segment_id: int) -> None:
        """Forget a segment; the last one takes its row."""
        row = self._rows.pop(segment_id, None)
        if row is None:
            return
        last = self._ids.pop()
        if last != segment_id:
            self._ids[row] = last
            self._rows[last] = row
            self._means[row] = self._means[len(self._ids)]

    def rows(self) -> KeyRows:
        """All of it; rows that change later are other segments' at worst."""
        held = None if self._means is None else self._means[:len(self._ids)]
        return KeyRows(list(self._ids), held)
