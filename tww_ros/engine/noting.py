"""Noting: one note about one closed segment, or one episode about many notes, as a step program.

In: the segment, and what its note may see: segments up to this one, notes before it. Out: the note
in the memory bank. A note under way is visible to nobody; it counts from the moment it is
finished.

When the notes are more than fit into a view, the oldest are summed up: an episode sees only the
notes that it is about, and takes their place.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tww_ros.config import EngineConfig
from tww_ros.engine.counters import Counters
from tww_ros.engine.job import Job, Program, generate, prefill
from tww_ros.engine.keeper import Keeper
from tww_ros.engine.recall import Fetch, brought, read_again
from tww_ros.errors import ModelError
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.block import KVBlock
from tww_ros.memory.notes import Resident, Scope, Told, with_block
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.types import Note


def write_note(model: StepModel, config: EngineConfig, bank: MemoryBank, record: SegmentRecord,
               sink: Entry, fetch: Fetch, on_note: Callable[[Note], None]) -> Program[None]:
    """Write the note of `record`, from its segments and the notes before it.

    A segment that memory has moved on meanwhile is fetched. ModelError where it is gone: a note
    about what cannot be seen would be made up.
    """
    started_s = time.monotonic()
    resident = functools.partial(
        bank.resident, Scope(record.epoch, until=record.order), tokens=config.note.window_tokens,
        note_tokens=config.memory.resident_note_tokens)
    seen = resident()
    # Asked afterwards: the keeper may move it at any moment.
    if not _shows(seen, record) and record.block is None:
        seen = yield from brought(model, bank, sink, resident(fetch=True), fetch)
        if not _shows(seen, record):
            raise ModelError('its keys and values went before their turn came; raise '
                             'memory.device_bytes or memory.host_bytes, or set memory.folder')
    view = lay_out([sink, *(item.entry for item in seen)], model.scheme)
    block, ids, finish_reason = yield from _write(model, view, model.style.note_prefix,
                                                  config.note.max_new_tokens)
    note = Note(record.id, record.camera, record.start_ns, record.end_ns,
                model.style.clean_note(model.decode(ids)), len(ids), finish_reason,
                time.monotonic() - started_s)
    bank.attach_note(record, note, None if model.style.says_nothing(note.text) else block)
    on_note(note)


def _shows(seen: Sequence[Resident], record: SegmentRecord) -> bool:
    return any(item.record is record and item.told is None for item in seen)


def write_episode(model: StepModel, config: EngineConfig, bank: MemoryBank,
                  parts: Sequence[Told], sink: Entry,
                  on_episode: Callable[[Note, int], None]) -> Program[None]:
    """Sum up `parts`, oldest first. on_episode: the episode, id of its last segment."""
    started_s = time.monotonic()
    items = [with_block(told, told.block) for told in parts]
    yield from read_again(model, bank, sink, items)
    view = lay_out([sink, *(item.entry for item in items)], model.scheme)
    block, ids, finish_reason = yield from _write(model, view, model.style.episode_prefix,
                                                  config.note.episode_max_new_tokens)
    length = sum(part.length for part in parts)
    if not ids or block.length >= length:
        raise ModelError(f'an episode about {length} tokens of notes has {block.length} tokens '
                         f'({len(ids)} written); the notes stay as they are')
    first, last = next(parts[0].notes), parts[-1].record
    episode = Note(first.record.id, last.camera, min(part.note.start_ns for part in parts),
                   max(part.note.end_ns for part in parts),
                   model.style.clean_note(model.decode(ids)), len(ids), finish_reason,
                   time.monotonic() - started_s)
    if bank.attach_episode(parts, episode, block):
        on_episode(episode, last.id)


def _write(model: StepModel, view: View, prefix: str,
           max_new_tokens: int) -> Program[tuple[KVBlock, list[int], str]]:
    """Write behind `prefix` until it ends; the block, closed, and what was written."""
    start, closer = model.encode(prefix), model.encode(model.style.note_closer)
    block = model.new_block(view.start('target'),
                            capacity=len(start) + max_new_tokens + len(closer))
    first = yield from prefill(block, view, start)
    ids, finish_reason = yield from generate(block, view, first.token, ends=model.note_ends,
                                             max_new_tokens=max_new_tokens)
    if finish_reason == 'length':
        closer = [ids[-1], *closer]
    yield from prefill(block, view, closer, logits='none')
    block.seal()
    return block, ids, finish_reason


@dataclass(eq=False)
class Noting:
    """A segment that waits for its note, or notes (`parts`) that wait for their episode. number:
    in the order in which they came."""

    record: SegmentRecord
    number: int
    parts: tuple[Told, ...] = ()


class NoteQueue:
    """What is to be noted, oldest first; `job` writes about the first of `waiting`.

    What a note sees is fixed when writing begins. Only the reasoner calls it.
    """

    def __init__(self, model: StepModel, bank: MemoryBank, keeper: Keeper, config: EngineConfig,
                 counters: Counters, sink: Entry, on_note: Callable[[Note], None],
                 on_settled: Callable[[SegmentRecord], None],
                 report: Callable[[str, Exception], None]) -> None:
        """on_settled: hears of a segment that was noted, or will not be. report: hears in words
        what could not be written, and why."""
        self.waiting: deque[Noting] = deque()
        self.job: Job | None = None
        self._model = model
        self._bank = bank
        self._keeper = keeper
        self._config = config
        self._counters = counters
        self._sink = sink
        self._on_note = on_note
        self._on_settled = on_settled
        self._report = report
        # The change of memory at which there was nothing to sum up.
        self._summed_up = -1
        self._newest = 0

    def add(self, record: SegmentRecord) -> None:
        """Have a note written about a closed segment."""
        self._append(record)
        # Offline nothing is skipped; live, a note that comes minutes late is worth less than
        # keeping up.
        if (not self._config.step.deterministic
                and len(self.waiting) > self._config.note.backlog):
            skipped = self.waiting[0 if self.job is None else 1]
            self.waiting.remove(skipped)
            self._counters.add(notes_skipped=1)
            self._on_settled(skipped.record)

    def sum_up(self) -> None:
        """With nothing to note, bring the oldest notes together, if there are too many."""
        if self.waiting or self._summed_up == self._bank.change:
            return
        self._summed_up = self._bank.change
        parts = self._bank.next_episode(self._config.memory.resident_note_tokens,
                                        self._config.note.episode_notes)
        if parts:
            self._append(parts[-1].record, parts)

    def mark(self) -> int:
        """What is waiting now, for `is_past`."""
        return self._newest

    def is_past(self, mark: int) -> bool:
        """Whether all that was waiting at that mark is written, skipped or given up."""
        return not self.waiting or self.waiting[0].number > mark

    def begin(self) -> None:
        """Begin the next one, if there is one and none is under way, or go on with what has been
        fetched for it."""
        self.sum_up()
        while self.waiting and (self.job is None or self.job.ready):
            try:
                self.job = self.job or Job(self._program(self.waiting[0]))
                self.job.poll()
            except Exception as error:
                self.fail(error)

    def end(self) -> Noting:
        """The one under way is written, or given up."""
        self.job, self._summed_up = None, -1
        return self.waiting.popleft()

    def fail(self, error: Exception) -> None:
        """The first one cannot be written; the next ones can."""
        noting = self.end()
        if noting.parts:
            for told in noting.parts:
                told.kept = True
            self._report('an episode could not be written', error)
        else:
            self._counters.add(notes_skipped=1)
            self._report(f'the note of segment {noting.record.id} could not be written', error)
            self._on_settled(noting.record)

    def _append(self, record: SegmentRecord, parts: tuple[Told, ...] = ()) -> None:
        self._newest += 1
        self.waiting.append(Noting(record, self._newest, parts))

    def _program(self, noting: Noting) -> Program[None]:
        model, config, bank = self._model, self._config, self._bank
        if noting.parts:
            return write_episode(model, config, bank, noting.parts, self._sink,
                                 self._keeper.keep_episode)
        return write_note(model, config, bank, noting.record, self._sink, self._keeper.fetch,
                          self._noted)

    def _noted(self, note: Note) -> None:
        self._counters.add(notes_written=1)
        record = self._bank.get(note.segment_id)
        if record is not None:
            self._keeper.keep_note(record)
        self._on_note(note)
        if record is not None:
            self._on_settled(record)
