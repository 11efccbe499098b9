"""Memory bank: the segments and notes that were watched, within a byte budget.

In: segments once their keys and values are complete, notes once they are written. Out: records for
users (`segments()`, `notes()`), and for a question the entries that its view is laid out from.
When the budget is reached the oldest segment loses its KV block and only its note remains; nothing
else is ever evicted, so memory is bounded and what a question sees depends on the stream alone,
not on timing.

The reasoner writes; any thread may read. The lock is held for list operations only, never during a
forward pass.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from tww_ros.config import MemoryConfig
from tww_ros.memory.block import KVBlock
from tww_ros.memory.view import Entry
from tww_ros.types import Note, Pose, SegmentInfo


@dataclass(eq=False)
class SegmentRecord:
    """One segment in the bank.

    `block` is None when only the note remains, `note_block` when that is gone too.
    """

    id: int
    order: int
    camera: str
    epoch: int
    start_ns: int
    end_ns: int
    frames: int = 0
    tokens: int = 0
    closed_by: str = ''
    block: KVBlock | None = None
    note: Note | None = None
    note_block: KVBlock | None = None
    pose: Pose | None = None

    @property
    def tier(self) -> str:
        """'device' while the KV block is held, 'note' afterwards."""
        return 'device' if self.block is not None else 'note'

    @property
    def nbytes(self) -> int:
        """Bytes of KV held for this segment and its note."""
        return sum(block.nbytes for block in (self.block, self.note_block) if block is not None)

    def info(self) -> SegmentInfo:
        """The record as users see it."""
        return SegmentInfo(self.id, self.order, self.camera, self.epoch, self.start_ns,
                           self.end_ns, self.frames, self.tokens, self.nbytes, self.tier,
                           self.closed_by, self.note.text if self.note else '', self.pose)


class Resident(NamedTuple):
    """An entry with its place in time: (order of the segment, 0 segment | 1 note)."""

    place: tuple[int, ...]
    entry: Entry
    record: SegmentRecord


class MemoryBank:
    """Closed segments in the order in which they were opened."""

    def __init__(self, config: MemoryConfig) -> None:
        self._config = config
        self._records: OrderedDict[int, SegmentRecord] = OrderedDict()
        self._lock = threading.Lock()
        self._newest_order = -1
        self._nbytes = 0
        self._tokens = 0

    # Users

    def segments(self) -> list[SegmentInfo]:
        """Every segment remembered, oldest first."""
        with self._lock:
            return [record.info() for record in self._records.values()]

    def notes(self) -> list[Note]:
        """Every note remembered, oldest segment first."""
        with self._lock:
            return [record.note for record in self._records.values() if record.note]

    @property
    def nbytes(self) -> int:
        """Bytes of KV held by segments and notes."""
        return self._nbytes

    @property
    def tokens(self) -> int:
        """Tokens of KV held by segments and notes."""
        return self._tokens

    @property
    def newest_order(self) -> int:
        """Order of the segment opened last among those ever added; -1 before the first."""
        return self._newest_order

    def __len__(self) -> int:
        return len(self._records)

    # The reasoner

    def add(self, record: SegmentRecord) -> None:
        """Take a segment whose keys and values are complete, and make room for it."""
        with self._lock:
            self._records[record.id] = record
            self._newest_order = max(self._newest_order, record.order)
            self._count(record.block, +1)
            self._evict()

    def attach_note(self, record: SegmentRecord, note: Note, block: KVBlock | None) -> None:
        """Add the note of a segment; a segment that was forgotten meanwhile is left alone.

        Without a block the note is listed and not attended to.
        """
        with self._lock:
            if record.id in self._records:
                record.note, record.note_block = note, block
                self._count(block, +1)
                self._evict()

    def get(self, segment_id: int) -> SegmentRecord | None:
        """The record of one segment, or None when it was forgotten."""
        return self._records.get(segment_id)

    def before(self, record: SegmentRecord, tokens: int) -> list[Entry]:
        """The newest segments of its camera and epoch opened before `record`, within `tokens`."""
        chosen = []
        for other in reversed(self._records.values()):
            if other.epoch != record.epoch:
                break
            if other.camera != record.camera or other.order >= record.order:
                continue
            if other.block is None or other.block.length > tokens:
                break
            tokens -= other.block.length
            chosen.append(Entry(other.block, 'source', other.id))
        return chosen[::-1]

    def resident(self, *, epoch: int, tokens: int, note_tokens: int,
                 cameras: tuple[str, ...] = (), until: int | None = None,
                 window: tuple[int, int] | None = None) -> list[Resident]:
        """What an answer or a note attends to, in time order: a segment, its note, the next.

        Only one epoch (and only `cameras`, `window` in ns, and segments opened up to order
        `until`); the newest first, as many as fit into the two budgets. A note counts when it is
        finished, whether or not its segment's own keys are still held.
        """
        left = [tokens, note_tokens]
        chosen = []
        with self._lock:
            for record in reversed(self._records.values()):
                if record.epoch < epoch or max(left) < 0:
                    break
                # A note of the last epoch may be written when the new one has begun.
                if (record.epoch > epoch
                        or (cameras and record.camera not in cameras)
                        or (until is not None and record.order > until)
                        or (window and not (record.end_ns >= window[0]
                                            and record.start_ns <= window[1]))):
                    continue
                for kind, side, block in ((0, 'source', record.block),
                                          (1, 'target', record.note_block)):
                    if block is None or left[kind] < 0:
                        continue
                    left[kind] -= block.length
                    if left[kind] >= 0:
                        entry = Entry(block, side, record.id)
                        chosen.append(Resident((record.order, kind), entry, record))
        return sorted(chosen, key=lambda item: item.place)

    def _evict(self) -> None:
        if self._nbytes > self._config.device_bytes:
            # Not the one that a late note was just added to: an older segment would outlive it.
            newest = next(reversed(self._records.values()))
            for field in ('block', 'note_block'):
                for record in self._records.values():
                    if self._nbytes <= self._config.device_bytes:
                        break
                    if record is not newest and getattr(record, field) is not None:
                        self._count(getattr(record, field), -1)
                        setattr(record, field, None)
        while len(self._records) > self._config.max_segments:
            _, oldest = self._records.popitem(last=False)
            for block in (oldest.block, oldest.note_block):
                self._count(block, -1)

    def _count(self, block: KVBlock | None, sign: int) -> None:
        if block is not None:
            self._nbytes += sign * block.nbytes
            self._tokens += sign * block.length
