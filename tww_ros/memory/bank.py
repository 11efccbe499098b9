"""Memory bank: the segments and notes that were watched, each tier within its byte budget.

In: segments once their keys and values are complete, notes once they are written. Out: records for
users (`segments()`, `notes()`), and for a question the entries that its view is laid out from.
When a budget is reached the oldest segment's block goes on to the next tier (`memory.tiers`);
from the last one only its note remains. So memory is bounded, and what a question sees depends on
the stream alone.

Blocks move in `settle()`: on the thread that adds, or, with `background`, on whoever calls it;
then adding waits only while a budget is exceeded by more than one segment. The lock is held for
list operations only, never while a block is converted, written or attended to.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from tww_ros.config import MemoryConfig
from tww_ros.memory.block import KVBlock
from tww_ros.memory.choice import choose_segments, in_scope
from tww_ros.memory.notes import NoteBook, Resident, Scope, Told
from tww_ros.memory.quantization import Block, QuantizedBlock, QuantScheme, quantize
from tww_ros.memory.record import SegmentRecord, thinned
from tww_ros.memory.retrieval import KeyTable, QueryTap
from tww_ros.memory.tiers import ATTENDED, DEVICE, DISK, HOST, NOTE, QUANTIZED, Move, Tiers
from tww_ros.memory.view import Entry
from tww_ros.types import Note, SegmentInfo

log = logging.getLogger(__name__)


class MemoryBank:
    """Closed segments in the order in which they were closed."""

    def __init__(self, config: MemoryConfig, scheme: QuantScheme | None = None,
                 on_disk: Callable[[SegmentRecord], bool] | None = None) -> None:
        """scheme: how blocks are quantized; None = not at all. on_disk: whether a segment's KV is
        in the folder; None = there is no folder."""
        self._config = config
        self._scheme = scheme
        self._on_disk = on_disk
        # What the folder may hold is the archive's business.
        budgets = {DEVICE: config.device_bytes, QUANTIZED: config.quantized_bytes,
                   HOST: config.host_bytes, DISK: sys.maxsize}
        if scheme is None:
            del budgets[QUANTIZED]
        if on_disk is None:
            del budgets[DISK]
        self._tiers = Tiers({tier: size for tier, size in budgets.items()
                             if size or tier == DEVICE})
        self._records: OrderedDict[int, SegmentRecord] = OrderedDict()
        self._book = NoteBook()
        # Segments that still have the tokens which tell nothing new, oldest first.
        self._whole: deque[SegmentRecord] = deque()
        self._whole_tokens = 0
        self._keys = KeyTable()
        self._lock = threading.Lock()
        self._moving = threading.Lock()
        self._newest_order = -1
        self.change = 0
        # Called when something is to be moved; None: `add` moves it itself.
        self.background: Callable[[], None] | None = None
        # Called with the ids of segments beyond `max_segments`, outside of all locks.
        self.on_forgotten: Callable[[list[int]], None] = lambda ids: None

    # Users

    def segments(self) -> list[SegmentInfo]:
        """Every segment remembered, oldest first."""
        with self._lock:
            return [record.info() for record in self._records.values()]

    def episodes(self) -> list[tuple[Note, int]]:
        """Every episode that stands for notes, oldest first; segment_id: of its first segment,
        the number: of its last."""
        with self._lock:
            return [(told.note, told.record.id) for told in self._book.episodes]

    def records(self) -> list[SegmentRecord]:
        """Their records."""
        with self._lock:
            return list(self._records.values())

    def clear(self, before_ns: int) -> int:
        """Forget the segments that ended before a stamp; how many they were."""
        with self._lock:
            old = [record for record in self._records.values() if record.end_ns < before_ns]
            for record in old:
                self._forget(record)
        return len(old)

    def notes(self) -> list[Note]:
        """Every note remembered, oldest segment first."""
        with self._lock:
            return [record.note for record in self._records.values() if record.note]

    @property
    def nbytes(self) -> int:
        """Bytes of KV of segments and notes in the memory of this machine, all tiers but disk."""
        return self._book.nbytes + sum(size for tier, size in self._tiers.used.items()
                                      if tier != DISK)

    @property
    def tokens(self) -> int:
        """Tokens of these."""
        return self._book.tokens + sum(count for tier, count in self._tiers.tokens.items()
                                       if tier != DISK)

    @property
    def tier_bytes(self) -> dict[str, int]:
        """Bytes by tier; notes count on the device."""
        with self._lock:
            used = dict(self._tiers.used)
            used[DEVICE] += self._book.nbytes
            return used

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
            self.change += 1
            record.added = self.change
            self._records[record.id] = record
            self._newest_order = max(self._newest_order, record.order)
            if record.block is not None:
                record.kv_tokens = record.block.length
                self._tiers.put(record, DEVICE, record.block.nbytes)
            if record.kept:
                self._whole.append(record)
                self._whole_tokens += record.tokens
            self._summarize(record)
            forgotten = []
            while len(self._records) > self._config.max_segments:
                oldest = next(iter(self._records.values()))
                self._forget(oldest)
                forgotten.append(oldest.id)
        if forgotten:
            self.on_forgotten(forgotten)
        self._thin()
        self._make_room(record)

    def attach_note(self, record: SegmentRecord, note: Note, block: KVBlock | None) -> bool:
        """Add the note of a segment; False when the segment was forgotten meanwhile.

        Without a block the note is listed and not attended to.
        """
        with self._lock:
            if self._records.get(record.id) is not record:
                return False
            self.change += 1
            record.note = note
            if block is not None:
                record.told = Told(record, note, block, block.length, self.change)
                self._book.add(record.told)
            self._spare_keys(record)
        self._make_room(record)
        return True

    def noted(self, record: SegmentRecord) -> None:
        """Nothing more will be noted of a segment; it may lose what tells nothing new."""
        record.awaits_note = False
        self._thin()

    def attach_episode(self, parts: Sequence[Told], note: Note, block: KVBlock) -> bool:
        """Put an episode in the place of notes; False when one of them was forgotten."""
        last = parts[-1].record
        with self._lock:
            if any(self._records.get(part.record.id) is not part.record for part in parts):
                return False
            self.change += 1
            self._book.add(Told(last, note, block, block.length, self.change, tuple(parts)))
        self._make_room(last)
        return True

    def next_episode(self, tokens: int, count: int) -> tuple[Told, ...]:
        """Notes that should be summed up: `count` of the oldest, when all have more than
        `tokens`."""
        with self._lock:
            return self._book.run(tokens, count)

    def get(self, segment_id: int) -> SegmentRecord | None:
        """The record of one segment, or None when it was forgotten."""
        return self._records.get(segment_id)

    def before(self, record: SegmentRecord, tokens: int) -> list[Entry]:
        """The newest segments of its camera and epoch opened before `record`, within `tokens`."""
        chosen = []
        with self._lock:
            for other in reversed(self._records.values()):
                if other.epoch != record.epoch:
                    break
                if other.camera != record.camera or other.order >= record.order:
                    continue
                block = other.block
                if block is None or block.length > tokens:
                    break
                tokens -= block.length
                chosen.append(Entry(block, 'source', other.id))
        return chosen[::-1]

    def resident(self, scope: Scope, *, tokens: int, note_tokens: int,
                 recent_tokens: int | None = None, found: Sequence[int] = (),
                 fetch: bool = False) -> list[Resident]:
        """What an answer or a note attends to, in time order: a segment, its note, the next.

        Segments: the newest within `recent_tokens`, then those of `found` (ids, best first), then
        the newest again, within `tokens` in all. Notes: those of `found` within half of
        `note_tokens`, and the newest. Of each, the first that does not fit ends it. A note counts
        when it is finished, whether or not its segment's own keys are still held. fetch: also what
        is not on the device, with entry None.
        """
        with self._lock:
            tiers = (*ATTENDED, HOST, DISK) if fetch else ATTENDED
            chosen = choose_segments(self._tiers.newest_first(tiers), scope, tokens=tokens,
                                     recent_tokens=recent_tokens,
                                     found=filter(None, map(self._records.get, found)),
                                     tiers=tiers)
            notes = [record.told for record in map(self._records.get, found)
                     if record is not None and record.told is not None]
            # Keys that are nowhere are computed again only for what the question is about.
            # For a window of the past there may be nothing else.
            lost = fetch and (self._on_disk is not None or scope.window is not None)
            chosen += self._book.choose(scope, note_tokens, notes, lost_found=fetch, lost=lost)
        return sorted(chosen, key=lambda item: item.place)

    def shows(self, scope: Scope, *, tokens: int, note_tokens: int) -> bool:
        """Whether `resident` finds anything, with `fetch`; without a list of it."""
        with self._lock:
            records = in_scope(self._tiers.newest_first((*ATTENDED, HOST, DISK)), scope)
            newest = next(records, None)
            if newest is not None and newest.kv_tokens <= tokens:
                return True
        return bool(self.resident(scope, tokens=tokens, note_tokens=note_tokens, fetch=True))

    def exceeds(self, tokens: int, note_tokens: int) -> tuple[bool, bool]:
        """Whether there is more than fits into these: of segments, and of notes (or of what was
        summed up)."""
        return (sum(self._tiers.tokens.values()) > tokens,
                self._book.words > note_tokens or self._book.summed_up)

    def match(self, tap: QueryTap, scope: Scope, limit: int) -> list[int]:
        """Segments by how well their keys match a question's queries, best first."""
        with self._lock:
            rows = self._keys.rows()
        # Without the lock: this may be a product over thousands of segments.
        ranking = rows.ranking(tap)
        with self._lock:
            known = (self._records.get(segment_id) for segment_id in ranking)
            inside = (r.id for r in known if r is not None and scope.holds(r))
            return list(itertools.islice(inside, limit))

    # Tiers

    def settle(self, slack_bytes: int = 0) -> None:
        """Move blocks until every tier is within its budget, but for `slack_bytes`."""
        while True:
            # One at a time, so that whoever waits does not wait for all of them.
            with self._moving:
                with self._lock:
                    next_one = self._next_to_go(slack_bytes)
                    if isinstance(next_one, Told):
                        self._book.drop(next_one)
                        continue
                if next_one is None:
                    return
                self._move(next_one)

    def over_budget(self, slack_bytes: int = 0) -> bool:
        """Whether `settle` has something to do."""
        with self._lock:
            return self._next_to_go(slack_bytes) is not None

    def _next_to_go(self, slack_bytes: int) -> Move | Told | None:
        """Keys of notes that no view takes, then segments, then the keys of the oldest note."""
        newest = next(reversed(self._records.values()), None)
        full = (self._tiers.used[DEVICE] + self._book.nbytes
                > self._config.device_bytes + slack_bytes)
        if full and self._book.tokens > self._config.resident_note_tokens:
            spare = self._book.oldest_held(but=newest)
            if spare is not None:
                return spare
        move = self._tiers.next_move(newest, {DEVICE: self._book.nbytes}, slack_bytes)
        if move is not None or not full:
            return move
        return self._book.oldest_held(but=newest)

    def lose(self, *segment_ids: int) -> None:
        """The KV of these is gone from the folder."""
        with self._lock:
            for record in filter(None, map(self._records.get, segment_ids)):
                if record.tier == DISK:
                    self._tiers.take(record)
                    self._spare_keys(record)

    def restore(self, records: Iterable[SegmentRecord]) -> None:
        """Take in what an archive remembers, oldest first; their tiers are `disk` or `note`."""
        with self._lock:
            for record in records:
                self.change += 1
                record.added = self.change
                self._records[record.id] = record
                self._newest_order = max(self._newest_order, record.order)
                if record.tier == DISK:
                    self._tiers.put(record, DISK, 0)
                if record.told is not None:
                    record.told.noted = self.change
                    self._book.add(record.told)

    def restore_episode(self, first_id: int, last_id: int, text: str, tokens: int,
                        length: int) -> None:
        """Take in an episode that an archive remembers; the notes that it sums up are there.

        tokens: of its words; length: with its layout.
        """
        with self._lock:
            parts = self._book.top_between(first_id, last_id)
            if parts:
                first, last = next(parts[0].notes).record, parts[-1].record
                self.change += 1
                note = Note(first.id, last.camera, min(part.note.start_ns for part in parts),
                            max(part.note.end_ns for part in parts), text, tokens, 'stop', 0.0)
                self._book.add(Told(last, note, None, length, self.change, parts))

    def promote(self, record: SegmentRecord, block: Block) -> None:
        """Hold the KV of a segment on the device again; several: the oldest first."""
        tier = QUANTIZED if isinstance(block, QuantizedBlock) else DEVICE
        with self._lock:
            if record.tier == DISK and record.id in self._records and tier in self._tiers.budgets:
                self._tiers.take(record)
                record.block, record.kv_tokens = block, block.length
                self._tiers.put(record, tier, block.nbytes)
        self._make_room(record)

    def restore_note(self, told: Told, block: KVBlock) -> None:
        """Hold the keys of a note again."""
        with self._lock:
            if told.block is None and told.record.id in self._records:
                self._book.hold(told, block)
        self._make_room(told.record)

    def _thin(self) -> None:
        """Take the tokens that tell nothing new from segments that are noted and no longer recent:
        no note can be written of what is left."""
        while (self._whole and not self._whole[0].awaits_note
               and self._whole_tokens - self._whole[0].tokens >= self._config.recent_tokens):
            record = self._whole.popleft()
            self._whole_tokens -= record.tokens
            block = record.block
            if not record.kept or block is None:
                continue
            try:
                smaller = thinned(block, record.kept)
            except RuntimeError as error:
                log.error('segment %d keeps all of its tokens: %s', record.id, error)
                continue
            with self._lock:
                if record.tier == DEVICE and record.block is block is not smaller:
                    record.kept = ()
                    self._tiers.replace(record, smaller)

    def _summarize(self, record: SegmentRecord) -> None:
        """Take over a segment's mean keys; without room for them it is found by words only."""
        summary, record.summary = record.summary, None
        mean = summary.mean() if summary is not None else None
        if mean is not None:
            with contextlib.suppress(RuntimeError):
                self._keys.add(record.id, mean)

    def _make_room(self, record: SegmentRecord) -> None:
        if self.background is None:
            self.settle()
            return
        self.background()
        # More than one segment above a budget is more than was promised.
        if self.over_budget(record.nbytes):
            self.settle(record.nbytes)

    def _move(self, move: Move) -> None:
        record, target = move.record, move.target
        was = block = record.block if record.block is not None else record.away
        try:
            size = 0
            if not record.awaits_note:
                block = thinned(block, record.kept)
            if target == QUANTIZED:
                block = quantize(block, self._scheme)
                size = block.nbytes
            elif target == HOST:
                block = block.to('cpu')
                size = block.nbytes
            elif target == DISK and not self._on_disk(record):
                target = NOTE
        except Exception as error:
            target = DISK if self._on_disk is not None and self._on_disk(record) else NOTE
            log.error('segment %d could not be brought from %s to %s, it goes to %s: %s',
                      record.id, move.source, move.target, target, error)
        with self._lock:
            if record.tier != move.source or (record.block or record.away) is not was:
                return
            self._tiers.take(record)
            record.kept = ()
            if target != NOTE and was is not None:
                record.kv_tokens = block.length
            record.block = block if target in ATTENDED else None
            record.away = block if target == HOST else None
            self._tiers.put(record, target, size)
            self._spare_keys(record)

    def _spare_keys(self, record: SegmentRecord) -> None:
        """What has neither keys nor a note left to be shown need not be found."""
        if record.tier == NOTE and record.note is not None and record.told is None:
            self._keys.remove(record.id)

    def _forget(self, record: SegmentRecord) -> None:
        del self._records[record.id]
        self._tiers.take(record)
        record.block = record.away = None
        self._keys.remove(record.id)
        if record.told is not None:
            self._book.forget(record.told)
