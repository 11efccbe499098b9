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
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from tww_ros.config import EngineConfig
from tww_ros.engine.counters import Counters
from tww_ros.engine.cpu import limit_threads
from tww_ros.errors import StoreError
from tww_ros.memory.archive import Archive
from tww_ros.memory.bank import MemoryBank, SegmentRecord
from tww_ros.memory.notes import Resident, Scope
from tww_ros.memory.quantization import Block
from tww_ros.memory.thumbnail import encode_thumbnail
from tww_ros.model.protocol import StepModel
from tww_ros.types import Answer, Note, Question

log = logging.getLogger(__name__)
Task = Callable[[], None]


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
        self._busy = False
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
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything that came has been moved and written; False on timeout."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._tasks or self._busy or self._bank.over_budget), timeout_s)

    @property
    def waiting(self) -> int:
        """Things that are still to be written or moved."""
        return len(self._tasks)

    def keep_segment(self, record: SegmentRecord) -> None:
        """Write a closed segment and its block."""
        block, picture, record.picture = record.block, record.picture, None
        mask = np.concatenate(record.kept) if record.kept else None

        def write() -> None:
            # What is read again will not be recent.
            kept = block if mask is None else block.keep(torch.from_numpy(mask))
            self._archive.add_segment(record, kept if self._archive.on_disk else None,
                                      None if picture is None else encode_thumbnail(picture))
        self._write(write)

    def keep_note(self, record: SegmentRecord) -> None:
        """Write a segment's note, and make it known to the index."""
        note, block = record.note, record.note_block
        self._write(lambda: self._archive.add_note(record, note, block))

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
                self._busy = False
                self._changed.notify_all()
                while not self._tasks and not self._stopping and not self._bank.over_budget:
                    self._changed.wait()
                if not self._tasks and self._stopping:
                    return
                task = self._tasks.popleft() if self._tasks else self._bank.settle
                self._busy = True
            try:
                task()
            except Exception as error:
                self._report('memory could not be moved', error)

    def _bring(self, items: Sequence[Resident], future: Future) -> None:
        try:
            future.set_result([self._block(item) for item in items])
        except Exception as error:
            future.set_exception(error)

    def _block(self, item: Resident) -> Block | None:
        """The block of a segment or note that is not on the device."""
        record = item.record
        if item.told is not None:
            # Keys of episodes are not on disk; their words are, and are read again.
            block = item.told.block or (
                None if item.told.parts else self._archive.read_note(record))
        else:
            block = record.block or record.away or self._archive.read_segment(record)
            if block is None:
                self._bank.lose(record)
        return None if block is None else block.to(self._device)

    def _write(self, task: Task) -> None:
        """Do a task that writes, if nothing has failed before."""
        def write() -> None:
            if self.problem:
                return
            try:
                task()
                forgotten = self._bank.forgotten
                self._archive.remove([forgotten.popleft() for _ in range(len(forgotten))])
                self._bank.lose(*self._archive.over_cap())
            except StoreError as error:
                self.problem = str(error)
                self._report('nothing more is written to the folder of the memory', error)
        self._do(write)

    def _report(self, what: str, error: Exception) -> None:
        self._counters.last_error = f'{what}: {type(error).__name__}: {error}'
        log.error('%s', self._counters.last_error, exc_info=error)
