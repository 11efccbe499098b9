"""Reasoner: the step loop, the only thread that calls the language model.

In: an inbox, in the order in which the watcher saw things: patches, closed segments, questions,
drain marks. Out: the memory bank grows, notes are written, questions are answered. Every turn of
the loop takes one step over what the scheduler picks: tokens of answers, a chunk of reading, a
token of the note under way. So reading never waits for thinking, thinking never waits for reading,
and nothing is shared between two threads inside the model.

A question enters when everything that was seen before it has been read, and takes its snapshot of
memory then; what is read while it is being answered is not in its view.

With `step.deterministic` a step holds the spans of one job only, and the inbox waits until all
notes and answers are written. Linear layers round differently for different numbers of rows, and
a question would see the notes that happen to be finished, so only then are results independent of
timing, bit for bit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tww_ros.config import EngineConfig
from tww_ros.engine.answering import AnswerQueue
from tww_ros.engine.counters import Counters
from tww_ros.engine.cpu import limit_threads
from tww_ros.engine.desk import Desk
from tww_ros.engine.job import Job, Result, results_of
from tww_ros.engine.keeper import Keeper
from tww_ros.engine.noting import NoteQueue
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.reader import CloseItem, PatchItem, Reader
from tww_ros.engine.recall import rehearsal
from tww_ros.engine.scheduler import Scheduler
from tww_ros.engine.sessions import Sessions
from tww_ros.engine.standing import Standing
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.view import Entry
from tww_ros.model.costs import StepCosts
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import Span
from tww_ros.types import Note, SegmentInfo

log = logging.getLogger(__name__)

# With nothing but a note to go on with, a question that was asked is waited for this long.
NOTE_PAUSE_S = 0.005
# Where nothing may be dropped, memory must not move on so far that a note comes too late to see
# its segment.
MOST_UNNOTED = 2


@dataclass(frozen=True)
class QuestionItem:
    """A question at its place in the stream: it sees what is before it in the inbox, of `epoch`.

    The watcher names the epoch: its first patch may still be incomplete, or have failed.
    check: of a standing question; it belongs to no session, and nobody remembers it.
    """

    pending: PendingAnswer
    epoch: int = 0
    check: bool = False


@dataclass(frozen=True)
class DrainItem:
    """`done` is set when everything before it is in memory and noted."""

    done: threading.Event


Item = PatchItem | CloseItem | QuestionItem | DrainItem


class Reasoner:
    """Runs the step loop in its own thread."""

    def __init__(self, model: StepModel, bank: MemoryBank, keeper: Keeper, sessions: Sessions,
                 config: EngineConfig, counters: Counters, on_note: Callable[[Note], None],
                 on_segment: Callable[[SegmentInfo], None]) -> None:
        self._model = model
        self._bank = bank
        self._config = config
        self._counters = counters
        self._on_segment = on_segment
        self._keeper = keeper
        self._reader = Reader(model, bank, config)
        self._sink = Entry(self._reader.sink, 'source')
        self._changed = threading.Condition()
        self._inbox: deque[Item] = deque()
        self._patches = 0
        self.desk = Desk(config.answer, counters, self.wake)
        self.standing = Standing(config.answer, self._put_check, self.wake)
        self._answers = AnswerQueue(model, bank, keeper, sessions, config, self._sink,
                                    self._report)
        self._notes = NoteQueue(model, bank, keeper, config, counters, self._sink, on_note,
                                self._settled, self._report)
        self._drains: list[tuple[int, threading.Event]] = []
        self._newest_epoch = 0
        self._note_passed = False
        self._scheduler = Scheduler(config.step)
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name='tww-reasoner', daemon=True)

    # Other threads

    def start(self) -> None:
        """Begin; the header is computed first."""
        self._thread.start()

    def resume(self, epoch: int, next_order: int) -> None:
        """Go on behind what was remembered before this start."""
        self._newest_epoch = epoch
        self._reader.resume(epoch, next_order)

    def note_again(self, records: Sequence[SegmentRecord]) -> None:
        """Before the start: write the notes that were not finished when an engine ended."""
        for record in records:
            self._notes.add(record)

    def put(self, item: Item) -> None:
        """Add to the inbox; never blocks."""
        with self._changed:
            if self._stopping:
                return
            self._patches += isinstance(item, PatchItem)
            self._inbox.append(item)
            self._changed.notify_all()

    def wait_for_room(self) -> bool:
        """Wait until another patch may be put; False when stopping."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._patches < self._config.step.read_ahead_patches)
            return not self._stopping

    def wait_for_notes(self, timeout_s: float) -> bool:
        """Wait until hardly a segment waits for its note; False when none was written in time, or
        stopping."""
        with self._changed:
            written = self._changed.wait_for(
                lambda: self._stopping or len(self._notes.waiting) <= MOST_UNNOTED, timeout_s)
            return written and not self._stopping

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive() and not self._stopping

    @property
    def active(self) -> int:
        """Answers being written."""
        # One that was delivered stays in the steps until its round is closed.
        return sum(answering.session.kept and not answering.pending.done()
                   for answering in list(self._answers.under_way))

    @property
    def notes_waiting(self) -> int:
        """Notes waiting or being written."""
        return len(self._notes.waiting)

    @property
    def open_segments(self) -> int:
        """Segments being read."""
        return self._reader.open_segments

    def stop(self) -> None:
        """Let the loop end after the step under way; open questions fail now."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.standing.close('the engine was closed before it held')
        self.desk.close('the engine was closed before the answer was complete')

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; False when it did not come."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait_for_token(self, pending: PendingAnswer, timeout_s: float) -> None:
        """Wait for the first token of an answer, or its end, but not for longer."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or pending.done()
                                   or pending.first_token_s is not None, timeout_s)

    def wake(self) -> None:
        """Look for something to do."""
        with self._changed:
            self._changed.notify_all()

    # The loop

    def _loop(self) -> None:
        log.debug('reasoner started')
        limit_threads(self._model.device, self._config.step.cpu_threads)
        try:
            self._reader.read_header()
            self._rehearse()
            self._scheduler = Scheduler(self._config.step, self._measure())
            log.info('steps: %s', self._scheduler.describe())
            while True:
                self._admit()
                work = self._pack()
                if work:
                    self._step(work)
                elif not self._sleep():
                    return
                if self._stopping:
                    return
        except Exception as error:
            self._report('the reasoner ended', error)
        finally:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            self.standing.close('the engine stopped before it held; see its log')
            self.desk.close('the engine stopped before the answer was complete; see its log')

    def _rehearse(self) -> None:
        """With a memory of before: look at it once, before somebody waits for the first answer."""
        try:
            span = rehearsal(self._model, self._config, self._bank, self._sink, self._newest_epoch)
            if span is not None:
                self._model.step([span])
        except Exception as error:
            self._report('memory could not be looked at ahead', error)

    def _sleep(self) -> bool:
        """Wait for news or for the nearest deadline; False when stopping."""
        with self._changed:
            ready = any(answering.ready for answering in self._answers.under_way)
            if not self._inbox and not self._stopping and not ready:
                waits_s = [self.desk.wait_s(), self.standing.wait_s()]
                if self._notes.job is not None:
                    waits_s.append(NOTE_PAUSE_S)
                self._changed.wait(min(filter(None, waits_s), default=None))
            return not self._stopping

    def _admit(self) -> None:
        """Take from the inbox all that needs no step, up to the next patch."""
        self.desk.expire()
        self.standing.expire()
        # Before new answers begin, because a session whose round was cut short is free again.
        self._answers.go_on()
        while not self._reader.busy and not self._waits_for_all():
            with self._changed:
                if not self._inbox:
                    break
                item = self._inbox.popleft()
                self._patches -= isinstance(item, PatchItem)
                self._changed.notify_all()
            try:
                self._take(item)
            except Exception as error:
                if isinstance(item, QuestionItem):
                    self._answers.fail(item.pending, error)
                    continue
                self._report(f'a {type(item).__name__} could not be handled', error)
                if isinstance(item, PatchItem) and not item.ahead:
                    self._counters.add(frames_rejected=item.frames)
        self._answers.begin()
        self._begin_note()
        if self._drains:
            for mark, done in self._drains:
                if self._notes.is_past(mark):
                    done.set()
            self._drains = [drain for drain in self._drains if not drain[1].is_set()]

    def _begin_note(self) -> None:
        """Lay out what the next note sees; a first token does not wait for that, for one step."""
        self._note_passed = not self._note_passed and any(
            answering.rows and answering.pending.first_token_s is None
            for answering in self._answers.under_way)
        if not self._note_passed:
            self._notes.begin()

    def _waits_for_all(self) -> bool:
        """Deterministic: whether a note or an answer must be written before the inbox goes on."""
        if not self._config.step.deterministic:
            return False
        self._notes.sum_up()
        return bool(self._notes.waiting or self._answers.waiting or self._answers.under_way)

    def _take(self, item: Item) -> None:
        if isinstance(item, PatchItem):
            if item.ahead and (self._answers.under_way or self._overtaken(item)):
                return
            self._reader.begin(item)
            if not self._reader.rows:
                self._read(0)
        elif isinstance(item, CloseItem):
            self._reader.close(item, self._closed)
        elif isinstance(item, QuestionItem):
            self._answers.ask(item.pending, item.epoch, kept=not item.check)
        else:
            self._drains.append((self._notes.mark(), item.done))

    def _overtaken(self, ahead: PatchItem) -> bool:
        """Whether the segment's next patch has come already."""
        with self._changed:
            return any(isinstance(item, PatchItem) and item.key == ahead.key
                       for item in self._inbox)

    def _closed(self, record: SegmentRecord) -> None:
        self._counters.add(segments=1)
        self._keeper.keep_segment(record)
        self._on_segment(record.info())
        if self._config.note.enabled:
            self._notes.add(record)
        else:
            self._settled(record)

    def _settled(self, record: SegmentRecord) -> None:
        """All that will be known of a closed segment is known."""
        self._bank.noted(record)
        self.standing.settled(record.camera, record.epoch)

    def _put_check(self, pending: PendingAnswer, epoch: int) -> None:
        """A check goes before what has come since its segment, as if it had been asked then."""
        with self._changed:
            self._inbox.appendleft(QuestionItem(pending, epoch, check=True))
            self._changed.notify_all()

    # Steps

    def _measure(self) -> StepCosts | None:
        """What steps cost, if it matters."""
        step = self._config.step
        return self._model.step_costs if step.measure and not step.deterministic else None

    def _pack(self) -> list[tuple[Job | Reader, list[Span]]]:
        """What the next step computes."""
        # One that waits for its session's earlier round cannot come sooner.
        urgent = self.desk.urgent > len(self._answers.waiting)
        return self._scheduler.pack(self._answers.under_way, self._reader, self._notes.job, urgent)

    def _step(self, work: list[tuple[Job | Reader, list[Span]]]) -> None:
        spans = [span for _, part in work for span in part]
        begun_s = time.monotonic()
        try:
            results = results_of(self._model.step(spans))
        except Exception as error:
            if len(work) > 1:
                # One bad span must not take the others with it: find it by running them one by
                # one.
                for single in work:
                    self._step([single])
            else:
                self._broken(work[0][0], error)
            return
        rows = sum(len(span.run) for span in spans)
        self._scheduler.took(rows, time.monotonic() - begun_s)
        self._counters.add(steps=1, step_tokens=rows)
        first = 0
        for owner, part in work:
            given = results[first:first + len(part)]
            first += len(part)
            try:
                self._advance(owner, part, given)
            except Exception as error:
                self._broken(owner, error)

    def _advance(self, owner: Job | Reader, spans: list[Span],
                 results: Sequence[Result]) -> None:
        if owner is self._reader:
            self._read(len(spans[0].run))
            return
        owner.advance(results)
        if owner.done and owner is self._notes.job:
            self._notes.end()
            self.wake()
        elif owner.done:
            self._answers.end(owner)

    def _read(self, tokens: int) -> None:
        """So many more tokens of the patch at hand are in memory."""
        item = self._reader.advance(tokens)
        if item is None or item.ahead:
            return
        self._counters.add(frames_watched=item.frames)
        newest_ns = self._counters.newest_ns if item.key.epoch == self._newest_epoch else 0
        self._newest_epoch = item.key.epoch
        self._counters.newest_ns = max(newest_ns, item.end_ns)
        self._counters.ingest_lag_s = time.monotonic() - item.pushed_s

    def _broken(self, owner: Job | Reader, error: Exception) -> None:
        """One owner's span cannot be computed: it alone fails."""
        if owner is self._reader:
            item = self._reader.abandon()
            if item is not None and item.ahead:
                # As a patch it is read again, and reported.
                return
            self._counters.add(frames_rejected=item.frames if item else 0)
            self._report('a patch could not be read', error)
        elif owner is self._notes.job:
            self._notes.fail(error)
            self.wake()
        else:
            self._answers.give_up(owner, error)

    def _report(self, what: str, error: Exception) -> None:
        self._counters.last_error = f'{what}: {type(error).__name__}: {error}'
        log.error('%s', self._counters.last_error, exc_info=error)


