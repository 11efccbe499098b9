"""View: what one span attends to, laid out in time order and contiguous in position.

In: blocks in time order, each on the source or the target side. Out: for each a shift Δ = its
place in this view − its stored place. Attention only sees differences of positions, and moving a
whole block by Δ on all three axes is one uniform rotation, so the *query* is rotated at (position
− Δ) and the stored keys stay as they are. The same block can therefore stand at different places
in the views of different sessions.

    scheme        for                     axes
    continuous    stock checkpoints       one: header, R1, C1, R2, C2, Q1, A1, R3, ... self
    decoupled     Think While Watching    two, both from 0: header, R1, R2, Q1, R3 ...
                                                            C1, C2, A1, C3 ...

It knows nothing of tensors' contents, of text, or of time: the caller brings the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tww_ros.memory.block import KVBlock

Side = Literal['source', 'target']
Scheme = Literal['continuous', 'decoupled']


class Entry(NamedTuple):
    """A block on its side; `segment_id` says whose evidence it is (None: header or dialogue)."""

    block: KVBlock
    side: Side
    segment_id: int | None = None


class Part(NamedTuple):
    """`length` tokens of a block, seen at stored position + `shift`."""

    block: KVBlock
    length: int
    shift: int
    segment_id: int | None = None


@dataclass(frozen=True)
class View:
    """Parts in time order, and where the next token of each side stands."""

    parts: tuple[Part, ...]
    next_source: int
    next_target: int
    # What a model has worked out about it, for the next step.
    memo: dict = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens attended to, the span's own not counted."""
        return sum(part.length for part in self.parts)

    def start(self, side: Side) -> int:
        """Position at which a block on `side` begins when it follows this view."""
        return self.next_source if side == 'source' else self.next_target

    def anchored(self, position: int) -> View:
        """The same view moved so that the source side ends at `position`."""
        offset = position - self.next_source
        if offset == 0:
            return self
        parts = tuple(part._replace(shift=part.shift + offset) for part in self.parts)
        return View(parts, self.next_source + offset, self.next_target + offset)


def lay_out(entries: Iterable[Entry], scheme: Scheme) -> View:
    """Place blocks one behind the other, from position 0; one axis or two, as the scheme says."""
    place = {'source': 0, 'target': 0}
    parts = []
    for entry in entries:
        block = entry.block
        parts.append(Part(block, block.length, place[entry.side] - block.start, entry.segment_id))
        place[entry.side] += block.extent
        if scheme == 'continuous':
            place['source'] = place['target'] = place[entry.side]
    return View(tuple(parts), place['source'], place['target'])
