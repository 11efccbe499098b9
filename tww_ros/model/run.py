"""Token runs and spans: what a packed step is made of.

A `TokenRun` is tokens with their positions, and for the vision tokens among them their embeddings
and DeepStack features. It can be cut anywhere, so that a step may take any chunk of it. A `Span`
is a run together with the block that its keys and values go to and the view that it attends to.
Nothing here computes.

    letters   T tokens   V vision tokens among them   E embedding size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tww_ros.memory.block import KVBlock
from tww_ros.memory.retrieval import KeySummary, QueryTap
from tww_ros.memory.view import View
from tww_ros.model.positions import text_positions


@dataclass(frozen=True)
class VisionTokens:
    """One temporal patch behind the vision tower.

    tokens: [V, E]; deepstack: one [V, E] per DeepStack layer; rows × columns = V, after merging.
    """

    tokens: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]
    rows: int
    columns: int


@dataclass(frozen=True)
class TokenRun:
    """Tokens at their positions.

    ids: [T]; positions: int64 [3, T]; end: the next free position; visual: bool [T], which ids
    are vision.
    """

    ids: tuple[int, ...]
    positions: np.ndarray
    end: int
    visual: np.ndarray | None = None
    tokens: torch.Tensor | None = None
    deepstack: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def text(cls, ids: list[int] | tuple[int, ...], start: int) -> TokenRun:
        """Text at positions start, start + 1, …"""
        return cls(tuple(ids), text_positions(len(ids), start), start + len(ids))

    def cut(self, first: int, last: int) -> TokenRun:
        """Tokens first to last (exclusive) as a run of their own."""
        if first == 0 and last >= len(self):
            return self
        end = self.end if last >= len(self) else int(self.positions[:, :last].max()) + 1
        ids, positions = self.ids[first:last], self.positions[:, first:last]
        if self.visual is None or not self.visual[first:last].any():
            return TokenRun(ids, positions, end)
        before, inside = int(self.visual[:first].sum()), int(self.visual[first:last].sum())
        chosen = slice(before, before + inside)
        return TokenRun(ids, positions, end, self.visual[first:last], self.tokens[chosen],
                        tuple(level[chosen] for level in self.deepstack))


@dataclass
class Span:
    """A run of tokens to be computed in one step.

    logits: 'none', 'last' ([1, vocab]) or 'all' ([T, vocab]). mass: float32 [parts of the view +
    1] to add the last token's attention mass to, own block last; or None. summary: collects the
    keys of its vision tokens; queries: the queries of all its tokens.
    """

    block: KVBlock
    view: View
    run: TokenRun
    logits: Literal['none', 'last', 'all'] = 'none'
    mass: torch.Tensor | None = None
    summary: KeySummary | None = None
    queries: QueryTap | None = None
