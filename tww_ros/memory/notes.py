"""Notes and episodes: everything that was told, in order, and what of it fits into a view.

In: notes as they are written; episodes, each of which sums up a run of notes (or of episodes).
Out: the newest of them and those that a question is about, within a budget of tokens. The words of
a note outlive its keys; its keys can be computed again from the words.

    notes      n0 n1 n2 n3 n4 n5 n6 n7 n8          told one by one
    episode    └──── e0 ────┘                      stands where n3 stood
    top        e0 n4 n5 n6 n7 n8                   what is looked through, newest first

An episode counts where all of it may be looked at; for a question about a part of its time, or
one that was asked before it was written, its notes stand in its place. It knows nothing of blocks'
contents, of tiers or of threads; the bank calls it under its lock.
"""

from __future__ import annotations

import bisect
import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tww_ros.memory.block import KVBlock
from tww_ros.memory.view import Entry
from tww_ros.types import Note

if TYPE_CHECKING:
    from tww_ros.memory.record import SegmentRecord

# Of the budget, the part that notes found for a question may take from the newest.
FOUND_SHARE = 0.5
_order = operator.attrgetter('order')


@functools.lru_cache
def _only(camera: str) -> frozenset[str]:
    """One set for all notes of a camera."""
    return frozenset((camera,))


@dataclass(eq=False, slots=True)
class Told:
    """A note about one segment, or an episode about the run of segments of `parts`.

    record: of its last segment. block: its keys; None when they are gone. length: tokens with the
    layout. noted: the bank's `change` when it was written.
    """

    record: SegmentRecord
    note: Note
    block: KVBlock | None
    length: int
    noted: int
    parts: tuple[Told, ...] = ()
    # Its segment was forgotten; it could not be summed up.
    forgotten: bool = False
    kept: bool = False
    cameras: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.cameras = (frozenset().union(*(part.cameras for part in self.parts)) if self.parts
                        else _only(self.record.camera))

    @property
    def order(self) -> int:
        """Of its last segment."""
        return self.record.order

    @property
    def notes(self) -> Iterator[Told]:
        """The notes that it is about: itself, or those of its parts."""
        for part in self.parts:
            yield from part.notes
        if not self.parts:
            yield self


class Scope(NamedTuple):
    """Which memory a question may look at: one epoch, up to some moment.

    cameras: empty = all. window: ns, inclusive. until: order of the last segment. change: the
    bank's `change` at that moment.
    """

    epoch: int
    cameras: tuple[str, ...] = ()
    window: tuple[int, int] | None = None
    until: int | None = None
    change: int | None = None

    def holds(self, record: SegmentRecord) -> bool:
        """Whether a segment is in it."""
        return (record.epoch == self.epoch
                and not (self.cameras and record.camera not in self.cameras)
                and not (self.until is not None and record.order > self.until)
                and not (self.change is not None and record.added > self.change)
                and not (self.window and (record.end_ns < self.window[0]
                                          or record.start_ns > self.window[1])))

    def covers(self, told: Told) -> bool:
        """Whether a note, or all of an episode, is in it and was written by then."""
        if self.change is not None and told.noted > self.change:
            return False
        if not told.parts:
            return self.holds(told.record)
        return (self.holds(told.record) and not (self.cameras and told.cameras - {*self.cameras})
                and not (self.window and (told.note.start_ns < self.window[0]
                                          or told.note.end_ns > self.window[1])))


class Resident(NamedTuple):
    """An entry with its place in time: (order of the segment, 0 segment | 1 note).

    entry is None when it has to be fetched first. told: of a note or an episode.
    """

    place: tuple[int, ...]
    entry: Entry | None
    record: SegmentRecord
    told: Told | None = None


class NoteBook:
    """All notes and episodes that are attended to, and the keys that are held of them."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.tokens = 0
        # Tokens of what is looked through of the newest epoch, whether or not its keys are held.
        self.words = 0
        self._epoch = 0
        self._top: list[Told] = []
        self._holders: list[Told] = []

    @property
    def episodes(self) -> list[Told]:
        """Those that are looked through, oldest first."""
        return [told for told in self._top if told.parts]

    @property
    def summed_up(self) -> bool:
        """Whether there are episodes; they are the oldest."""
        return bool(self._top and self._top[0].parts)

    def add(self, told: Told) -> None:
        """Add a note, or an episode in the place of its parts."""
        for part in told.parts:
            self._leave(part)
            # An episode that was summed up is not looked at any more.
            if part.parts:
                self.drop(part)
        self._enter(told)
        if told.block is not None:
            block, told.block = told.block, None
            self.hold(told, block)

    def forget(self, told: Told) -> None:
        """Leave a note out for good; an episode goes with the last of its notes."""
        told.forgotten = True
        self.drop(told)
        if told in self._top:
            self._leave(told)
            return
        for top in self._top:
            if top.parts and top.record is told.record:
                self._leave(top)
                self.drop(top)
                for note in top.notes:
                    if not note.forgotten:
                        self._enter(note)
                return

    def hold(self, told: Told, block: KVBlock) -> None:
        """Hold its keys."""
        told.block = block
        bisect.insort(self._holders, told, key=_order)
        self.nbytes += block.nbytes
        self.tokens += block.length

    def drop(self, told: Told) -> None:
        """Hold its keys no more."""
        if told.block is not None:
            self._holders.remove(told)
            self.nbytes -= told.block.nbytes
            self.tokens -= told.block.length
            told.block = None

    def _enter(self, told: Told) -> None:
        bisect.insort(self._top, told, key=_order)
        if told.record.epoch > self._epoch:
            self._epoch, self.words = told.record.epoch, 0
        if told.record.epoch == self._epoch:
            self.words += told.length

    def _leave(self, told: Told) -> None:
        self._top.remove(told)
        if told.record.epoch == self._epoch:
            self.words -= told.length

    def oldest_held(self, but: SegmentRecord | None) -> Told | None:
        """The oldest whose keys are held, but for those of one segment."""
        return next((told for told in self._holders if told.record is not but), None)

    def choose(self, scope: Scope, tokens: int, found: Sequence[Told], *, lost: bool,
               lost_found: bool) -> list[Resident]:
        """The notes of `found` within half of `tokens`, and the newest of all within the rest; the
        first that does not fit ends it. lost: also those whose keys are gone, with entry None."""
        left, chosen = tokens, {}
        for told in found:
            if (scope.covers(told) and (lost_found or told.block is not None)
                    and left - told.length >= tokens * (1 - FOUND_SHARE)):
                left -= told.length
                chosen[id(told)] = told
        for told in self._newest_first(self._top, scope):
            if id(told) not in chosen and (lost or told.block is not None):
                left -= told.length
                if left < 0:
                    break
                chosen[id(told)] = told
        return [with_block(told, told.block) for told in chosen.values()]

    def top_between(self, first_id: int, last_id: int) -> tuple[Told, ...]:
        """What is looked through of a run of segments."""
        return tuple(told for told in self._top if first_id <= told.record.id <= last_id)

    def run(self, tokens: int, count: int) -> tuple[Told, ...]:
        """What the next episode should sum up: the oldest `count` of the newest epoch, if all that
        is looked through has more than `tokens`; else nothing."""
        if count < 2 or not tokens or self.words <= tokens:
            return ()
        here = [told for told in self._top if told.record.epoch == self._epoch and not told.kept]
        # Notes before episodes: an episode of episodes says least.
        for of_notes in (True, False):
            oldest = [told for told in here if (not told.parts) == of_notes][:count]
            if len(oldest) == count:
                return tuple(oldest)
        return ()

    @classmethod
    def _newest_first(cls, items: Sequence[Told], scope: Scope) -> Iterator[Told]:
        for told in reversed(items):
            if told.record.epoch < scope.epoch:
                return
            if told.forgotten:
                continue
            if scope.covers(told):
                yield told
            elif told.parts:
                yield from cls._newest_first(told.parts, scope)


def with_block(told: Told, block: KVBlock | None) -> Resident:
    """A note or an episode in a view, with these keys."""
    # Ids below zero: an episode is not its last segment.
    entry_id = -1 - told.noted if told.parts else told.record.id
    entry = None if block is None else Entry(block, 'target', entry_id)
    return Resident((told.order, 1), entry, told.record, told)
