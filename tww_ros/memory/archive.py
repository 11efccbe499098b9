"""Archive: between what the engine holds (records, notes, answers, KV blocks) and a store's rows.

In: records as they are completed. Out: rows and files in the store, records again after a restart,
segments by the words of their notes. With a store in memory it keeps the words alone, for search.
It has no thread; the keeper calls it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tww_ros.errors import StoreError
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.notes import Scope, Told
from tww_ros.memory.quantization import Block, QuantizedBlock, QuantScheme, quantize
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.retrieval import asks_for_first
from tww_ros.memory.store import Store
from tww_ros.memory.store_schema import StoredAnswer, StoredNote, StoredSegment
from tww_ros.memory.tiers import DISK, NOTE
from tww_ros.types import Answer, Note, Question

log = logging.getLogger(__name__)

SEGMENT, NOTES = 'segment', 'note'
_KINDS: dict[str, type[Block]] = {'full': KVBlock, 'quantized': QuantizedBlock}


class Archive:
    """Writes and reads one store. shape: of the model's blocks."""

    def __init__(self, store: Store, shape: BlockShape, scheme: QuantScheme | None, *,
                 on_disk: bool, measure: Callable[[Note], int] = lambda note: 0) -> None:
        """scheme: of segments on disk; None writes them as they are. on_disk: whether the store
        has a folder. measure: tokens of a note as it stands in memory; 0 = it is not attended to.
        """
        self.store = store
        self.on_disk = on_disk
        self._measure = measure
        self._shape = dataclasses.replace(shape, device=torch.device('cpu'))
        self._scheme = scheme
        # Segments whose KV is on disk, or will be when the keeper comes to it.
        self._held: set[int] = set()
        self._epochs: set[int] = set(store.epochs())

    # Writing

    def promise(self, segment_id: int) -> None:
        """A segment's KV is about to be written."""
        if self.on_disk:
            self._held.add(segment_id)

    def lose(self, segment_id: int) -> None:
        """A segment's KV is not on disk."""
        self._held.discard(segment_id)

    def add_segment(self, record: SegmentRecord, block: Block | None,
                    thumbnail: bytes | None = None) -> None:
        """Add a closed segment with its block, if there is one."""
        stored = StoredSegment(
            record.id, record.order, record.camera, record.epoch, record.start_ns, record.end_ns,
            record.frames, record.tokens, record.closed_by, record.pose)
        if self._scheme is not None and isinstance(block, KVBlock) and self.on_disk:
            block = quantize(block, self._scheme)
        with self.store.transaction():
            if record.epoch not in self._epochs:
                self.store.add_epoch(record.epoch, record.zero_ns)
            self.store.add_segment(stored, thumbnail)
            if self.on_disk and block is not None:
                self._add_block(record.id, SEGMENT, block)
        self._epochs.add(record.epoch)
        if self.on_disk and block is not None:
            self._held.add(record.id)

    def add_note(self, record: SegmentRecord, note: Note, block: KVBlock | None) -> None:
        """Add the note of a segment; one that is not attended to has no block."""
        with self.store.transaction():
            self.store.add_note(StoredNote(
                record.id, note.text, tokens=note.tokens, finish_reason=note.finish_reason,
                seconds=note.seconds))
            if self.on_disk and block is not None:
                self._add_block(record.id, NOTES, block)

    def add_episode(self, episode: Note, last_id: int) -> None:
        """Add an episode about the segments from its own to `last_id`."""
        self.store.add_note(StoredNote(
            episode.segment_id, episode.text, 'episode', last_id, episode.tokens,
            episode.finish_reason, episode.seconds))

    def add_answer(self, question: Question, answer: Answer, epoch: int) -> None:
        """Add a question with its answer."""
        self.store.add_answer(StoredAnswer(
            question.text, answer.text, answer.as_of_ns, answer.as_of_ns, epoch, question.session,
            question.choices, answer.choice_probabilities, answer.reasoning, answer.finish_reason,
            tuple((item.segment_id, item.score) for item in answer.evidence),
            time.time_ns(), answer.total_s))

    def remove(self, segment_ids: list[int]) -> None:
        """Forget segments with all that is about them."""
        self._held.difference_update(segment_ids)
        self.store.remove(segment_ids)

    def clear(self, before_ns: int) -> None:
        """Forget what ended before a stamp."""
        self.store.clear(before_ns)

    @property
    def next_order(self) -> int:
        """Behind every segment that was ever written: of ids and orders, which are the same."""
        return max(self.store.next_id, self.store.next_order)

    def has(self, record: SegmentRecord) -> bool:
        """Whether a segment's KV is on disk."""
        return record.id in self._held

    # Reading

    def read_segment(self, record: SegmentRecord) -> Block | None:
        """A segment's block on the CPU; None when there is none, or it is damaged (logged)."""
        return self._read(record.id, SEGMENT)

    def read_note(self, record: SegmentRecord) -> Block | None:
        """A note's block, likewise."""
        return self._read(record.id, NOTES)

    def search(self, words: str, scope: Scope, limit: int) -> list[int]:
        """Segments whose notes have these words, best first; among equals by the time that the
        words ask about."""
        hits = self.store.search(
            words, limit=limit, epoch=scope.epoch, cameras=scope.cameras, window=scope.window,
            until=scope.until, oldest_first=asks_for_first(words), kind='note')
        return list(dict.fromkeys(hit.last_id for hit in hits))

    def episodes(self) -> list[StoredNote]:
        """The episodes that the folder remembers, in the order in which they were written."""
        return sorted((note for note in self.store.notes() if note.kind == 'episode'),
                      key=lambda note: note.id)

    def restore(self) -> tuple[list[SegmentRecord], Mapping[int, int]]:
        """Everything that the folder remembers, oldest first, without its KV; and the epochs."""
        blocks: dict[int, dict[str, int]] = {}
        for block in self.store.blocks():
            length = block.metadata.get('length', 0)
            if length:
                blocks.setdefault(block.segment_id, {})[block.name] = length
        notes = {note.last_id: note for note in self.store.notes() if note.kind == 'note'}
        records = []
        for row in self.store.segments():
            held = blocks.get(row.id, {})
            record = SegmentRecord(
                row.id, row.order, row.camera, row.epoch, row.start_ns, row.end_ns, row.frames,
                row.tokens, row.closed_by, pose=row.pose, tier=DISK if SEGMENT in held else NOTE,
                kv_tokens=held.get(SEGMENT, 0))
            found = notes.get(row.id)
            if found is not None:
                record.note = Note(row.id, row.camera, row.start_ns, row.end_ns, found.text,
                                   found.tokens, found.finish_reason, found.seconds)
                length = held.get(NOTES) or self._measure(record.note)
                if length:
                    record.told = Told(record, record.note, None, length, 0)
            if SEGMENT in held:
                self._held.add(row.id)
            records.append(record)
        return records, self.store.epochs()

    def into(self, store: Store) -> Archive:
        """The same for a folder's store."""
        return Archive(store, self._shape, self._scheme, on_disk=True, measure=self._measure)

    def _add_block(self, segment_id: int, name: str, block: Block) -> None:
        kind = next(kind for kind, of in _KINDS.items() if isinstance(block, of))
        self.store.add_block(segment_id, name, block.state(), {
            'kind': kind, 'start': block.start, 'end': block.end, 'length': block.length})

    def _read(self, segment_id: int, name: str) -> Block | None:
        if not self.on_disk:
            return None
        try:
            state, told = self.store.read_block(segment_id, name)
            return self._block(state, told)
        except (StoreError, KeyError, TypeError) as error:
            log.warning('segment %d: %s', segment_id, error)
            return None

    def _block(self, state: Mapping[str, Any], told: Mapping[str, Any]) -> Block:
        return _KINDS[told['kind']].from_state(self._shape, told['start'], told['end'], state)
