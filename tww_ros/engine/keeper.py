"""Keeper: the thread that moves and writes memory, so that neither watching nor thinking waits.

In: closed segments, notes, answers, as they come. Out: blocks in the tiers that the budgets
ask for, and everything that must survive a restart in the store's folder. For a question it finds
notes by their words and brings blocks to the device.

With `step.deterministic` there is no thread: everything is done at once by whoever asks for it.

What cannot be written is not lost from memory: after an error (a full disk) nothing more is
written, `problem` says why, and the engine goes on.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tww_ros.config import EngineConfig
from tww_ros.engine.counters import Counters
from tww_ros.engine.cpu import limit_threads
from tww_ros.errors import ConfigError, StoreError
from tww_ros.memory.archive import Archive
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.notes import Resident, Scope
from tww_ros.memory.quantization import Block
from tww_ros.memory.record import SegmentRecord, thinned
from tww_ros.memory.thumbnail import encode_thumbnail
from tww_ros.model.protocol import StepModel
from tww_ros.types import Answer, Note, Question

log = logging.getLogger(__name__)
Task = Callable[[], None]
# With more waiting to be written, segments are written without their KV.
HELD_TASKS = 16


class Keeper:
    """Moves, writes, finds."""

    def __init__(self, model: StepModel, bank: MemoryBank, archive: Archive, config: EngineConfig,
                 counters: Counters, on_fetched: Callable[[], None]) -> None:
        """on_fetched is called, on this thread, when a fetch is done."""
        self._device = model.device
        self._bank = bank
        self._archive = archive
        self._config = config
        self._counters = counters
        self._on_fetched = on_fetched
        self._inline = config.step.deterministic
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.problem = ''
        self._thread = threading.Thread(target=self._loop, name='tww-keeper', daemon=True)

    # Other threads

    def start(self) -> None:
        """Begin; from now on blocks are moved in the background."""
        if not self._inline:
            self._bank.background = self._poke
            self._thread.start()

    def stop(self) -> None:
        """Let the thread end when everything that came has been written."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; False when it did not come."""
        if self._thread.ident is None:
            self._archive.store.close()
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything that came has been moved and written; False on timeout."""
        if self._thread.ident is None:
            return True
        end_s = time.monotonic() + timeout_s
        passed = threading.Event()
        self._do(passed.set)
        if not passed.wait(timeout_s):
            return False
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopping or not self._bank.over_budget(),
                max(0.0, end_s - time.monotonic()))

    def keep_segment(self, record: SegmentRecord) -> None:
        """Write a closed segment and its block."""
        picture, record.picture = record.picture, None
        marks = tuple(record.kept)
        # A disk that is slower than the stream must not hold more and more of it in memory.
        block = record.block if len(self._tasks) < HELD_TASKS else None
        if block is not None:
            self._archive.promise(record.id)

        def write() -> None:
            if self._bank.get(record.id) is not record:
                return
            kept, jpeg = block, None
            try:
                if kept is not None:
                    kept = thinned(kept, marks)
                jpeg = None if picture is None else encode_thumbnail(picture)
                self._archive.add_segment(record, kept, jpeg)
            except (RuntimeError, ValueError, ConfigError) as error:
                # Without room to convert it: the segment is written without its KV.
                self._lose(record)
                self._archive.add_segment(record, None, jpeg)
                self._report(f'the KV of segment {record.id} was not written', error)
            except StoreError:
                self._lose(record)
                raise
        self._write(write)

    def keep_note(self, record: SegmentRecord) -> None:
        """Write a segment's note, and make it known to the index."""
        note, block = record.note, record.note_block

        def write() -> None:
            if self._bank.get(record.id) is record:
                self._archive.add_note(record, note, block)
        self._write(write)

    def forget(self, segment_ids: list[int]) -> None:
        """Remove segments from the folder and the index."""
        self._write(lambda: self._archive.remove(segment_ids))

    def clear(self, before_ns: int) -> None:
        """Remove what ended before a stamp."""
        self._write(lambda: self._archive.clear(before_ns))

    def keep_episode(self, episode: Note, last_id: int) -> None:
        """Write an episode."""
        self._write(lambda: self._archive.add_episode(episode, last_id))

    def keep_answer(self, question: Question, answer: Answer, epoch: int) -> None:
        """Write an answer, if there is a folder."""
        if self._archive.on_disk:
            self._write(lambda: self._archive.add_answer(question, answer, epoch))

    def preload(self, epoch: int) -> None:
        """Bring to the device what the next question will look at, before the first one comes."""
        memory = self._config.memory
        items = self._bank.resident(Scope(epoch), tokens=memory.resident_tokens,
                                    note_tokens=memory.resident_note_tokens, fetch=True)
        for item in items:
            if item.entry is not None:
                continue
            block = self._block(item)
            if block is not None and item.told is not None:
                self._bank.restore_note(item.told, block)
            elif block is not None:
                self._bank.promote(item.record, block)

    def search(self, words: str, scope: Scope, limit: int) -> list[int]:
        """Segments whose notes have these words, best first."""
        try:
            return self._archive.search(words, scope, limit)
        except StoreError as error:
            self._report('notes could not be searched', error)
            return []

    def fetch(self, items: Sequence[Resident]) -> Future[list[Block | None]]:
        """Bring blocks to the device; None for what is gone."""
        future: Future[list[Block | None]] = Future()
        if not self._inline:
            future.add_done_callback(lambda _: self._on_fetched())
        # A question waits for it: before all that is only written.
        self._do(lambda: self._bring(items, future), first=True)
        return future

    # The loop

    def _do(self, task: Task, first: bool = False) -> None:
        if self._inline:
            task()
            return
        with self._changed:
            (self._tasks.appendleft if first else self._tasks.append)(task)
            self._changed.notify_all()

    def _poke(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _loop(self) -> None:
        limit_threads(self._device, 1)
        while True:
            with self._changed:
                self._changed.notify_all()
                while not (self._tasks or self._stopping or self._bank.over_budget()):
                    self._changed.wait()
                if not self._tasks and self._stopping:
                    break
                task = self._tasks.popleft() if self._tasks else self._bank.settle
            try:
                task()
            except Exception as error:
                self._report('memory could not be moved', error)
        self._archive.store.close()

    def _bring(self, items: Sequence[Resident], future: Future, again: bool = True) -> None:
        blocks = [self._block(item, last=not again) for item in items]
        late = any(block is None and item.told is None and self._archive.has(item.record)
                   for block, item in zip(blocks, items, strict=True))
        if late and again and not self._inline:
            # It is still to be written: behind that, once.
            self._do(lambda: self._bring(items, future, again=False))
            return
        future.set_result(blocks)

    def _block(self, item: Resident, last: bool = True) -> Block | None:
        """The block of a segment or note that is not on the device; None when it cannot be had.
        last: a segment that is not found will not be."""
        try:
            return self._find_block(item, last)
        except Exception as error:
            self._report(f'the KV of segment {item.record.id} could not be fetched', error)
            return None

    def _find_block(self, item: Resident, last: bool) -> Block | None:
        record = item.record
        if item.told is not None:
            # Keys of episodes are not on disk; their words are, and are read again.
            block = item.told.block or (
                None if item.told.parts else self._archive.read_note(record))
        else:
            block = record.block or record.away or self._archive.read_segment(record)
            if block is None and last:
                self._lose(record)
        return None if block is None else block.to(self._device)

    def _write(self, task: Task) -> None:
        """Do a task that writes, if nothing has failed before."""
        def write() -> None:
            if self.problem:
                return
            try:
                task()
            except StoreError as error:
                if isinstance(error.__cause__, sqlite3.IntegrityError):
                    # What it is about was removed meanwhile.
                    self._report('a row was not written', error)
                    return
                where = self._config.memory.folder or 'the index of notes'
                self.problem = f'nothing more is written to {where}: {error}'
                self._report('memory is no longer written', error)
        self._do(write)

    def _lose(self, record: SegmentRecord) -> None:
        self._archive.lose(record.id)
        self._bank.lose(record.id)

    def _report(self, what: str, error: Exception) -> None:
        self._counters.last_error = f'{what}: {type(error).__name__}: {error}'
        log.error('%s', self._counters.last_error, exc_info=error)
