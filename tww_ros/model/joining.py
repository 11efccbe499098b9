"""Pages: many small parts of a view, laid into one, so that attention does not run over each.

In: a view's parts. Out: the same tokens in the same order in fewer parts. A view of a long stream
holds hundreds of notes and rounds of twenty tokens, each with its own shift; a matrix product for
each of them, in every layer and for every token, costs far more than the products themselves. A
page holds copies of consecutive small blocks, their keys turned so that one shift serves all:

    parts    n0 Δ=7   n1 Δ=9   n2 Δ=9   n3 Δ=4          four products, three rotations of the query
    page     n0 n1+2 n2+2 n3−3, Δ=7                      one product, one rotation

Why it is exact: moving a block by δ is one uniform rotation of its keys (`memory.view`).

Pages begin where their content says so, not where the view begins: when the oldest note leaves a
view or a new one comes, the pages between are found again. They depend on nothing but the blocks
in them, so results do not depend on what was asked before. On the CPU only: on a GPU such products
are cheap and memory is not.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.view import Part
from tww_ros.model.positions import MRope, rotate_signed

# Longer blocks stand by themselves; a page has at most so many blocks.
LONGEST_TOKENS = 160
MOST_PARTS = 128
# One token in so many begins a page, with its block: the larger pages are, the fewer products, and
# the more has to be copied when a note comes.
SPACING_TOKENS = 1_280
CACHE_BYTES = 64 << 20
# Of pages that begin with the same block all but the latest end where a note has come since; but
# questions may see different notes, of some cameras only. And a page that no view had among so
# many is not asked for any more: the view's beginning has moved on, or its blocks are gone.
MOST_ALIKE = 3
MOST_JOINED = 64


@dataclass(frozen=True, eq=False)
class Page:
    """Keys and values of several blocks of `lengths` tokens, read like one: [H, n, D] by layer."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    lengths: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens in it."""
        return sum(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    @functools.cached_property
    def part_of_token(self) -> np.ndarray:
        """int64 [n]: which of its blocks each token is of."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def layer_keys(self, layer: int, length: int) -> torch.Tensor:
        """Keys of the first tokens of one layer, [H, length, D]: no copy."""
        return self.keys[layer][:, :length]

    def layer_values(self, layer: int, length: int) -> torch.Tensor:
        """Values of the first tokens of one layer, [H, length, D]: no copy."""
        return self.values[layer][:, :length]


_Place = tuple[int, int, int]
_Key = tuple[_Place, ...]


@dataclass(eq=False, slots=True)
class _Kept:
    """blocks: ids of those that are gone are used again, the references tell. joined: number of
    the last view that it was a part of."""

    page: Page
    blocks: list[weakref.ref]
    joined: int = 0


class Pages:
    """Joins parts, and keeps the pages for the next view. Only the reasoner uses it."""

    def __init__(self, rope: MRope, shape: BlockShape, cache_bytes: int = CACHE_BYTES) -> None:
        self.nbytes = 0
        self.made = 0
        self._rope = rope
        self._shape = shape
        self._cache_bytes = cache_bytes
        self._joined = 0
        # The one that was not used for longest first.
        self._pages: OrderedDict[_Key, _Kept] = OrderedDict()

    def join(self, parts: Sequence[Part]) -> list[Part]:
        """The same tokens in the same order, in as few parts as may be."""
        self._joined += 1
        joined = []
        for run in self._runs(parts):
            joined.append(run[0] if len(run) == 1 else
                          Part(self._page(run), sum(part.length for part in run), run[0].shift))
        return joined

    def _runs(self, parts: Sequence[Part]) -> Iterator[list[Part]]:
        run: list[Part] = []
        for part in parts:
            small = _may_join(part)
            if run and (not small or _begins_page(part) or len(run) == MOST_PARTS):
                yield run
                run = []
            if small:
                run.append(part)
            else:
                yield [part]
        if run:
            yield run

    def _page(self, run: list[Part]) -> Page:
        key = tuple((id(part.block), part.length, part.shift - run[0].shift) for part in run)
        kept = self._pages.get(key)
        if kept is None or not all(ref() is part.block
                                   for ref, part in zip(kept.blocks, run, strict=True)):
            if kept is not None:
                self._forget(key)
            kept = _Kept(self._make(run), [weakref.ref(part.block) for part in run])
            self.nbytes += kept.page.nbytes
            self._forget_old(key[0])
        kept.joined = self._joined
        self._pages[key] = kept
        self._pages.move_to_end(key)
        return kept.page

    def _forget_old(self, first: _Place) -> None:
        """Room for a page that begins with the block `first`."""
        alike = [key for key in self._pages if key[0] == first]
        for key in alike[:1 - MOST_ALIKE]:
            self._forget(key)
        for key, kept in list(self._pages.items()):
            if kept.joined > self._joined - MOST_JOINED and self.nbytes <= self._cache_bytes:
                break
            self._forget(key)

    def _forget(self, key: _Key) -> None:
        self.nbytes -= self._pages.pop(key).page.nbytes

    def _make(self, run: list[Part]) -> Page:
        self.made += 1
        lengths = tuple(part.length for part in run)
        # Sealed blocks have no spare capacity: whole tensors, which are joined far quicker.
        keys = torch.cat([part.block.keys for part in run], dim=2)              # [L, H, n, D]
        values = torch.cat([part.block.values for part in run], dim=2)
        moved = np.array([part.shift - run[0].shift for part in run])
        table = self._rope.moves(moved, np.array(lengths), self._shape.dtype)
        return Page(rotate_signed(keys, *table).unbind(), values.unbind(), lengths)


def _may_join(part: Part) -> bool:
    """Small, complete, and not about to grow."""
    return (isinstance(part.block, KVBlock) and part.block.sealed
            and part.length == part.block.length <= LONGEST_TOKENS)


def _begins_page(part: Part) -> bool:
    # Of whole numbers: the same in every process. Notes often begin at the same place: the segment
    # tells them apart.
    number = 0 if part.segment_id is None else part.segment_id
    return hash((number, part.block.start, part.length)) % SPACING_TOKENS < part.length
