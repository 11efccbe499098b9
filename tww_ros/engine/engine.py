"""Engine: watches, remembers and answers; the only owner of threads and locks.

    push ──▶ watcher thread (sampler, segments, ──▶ inbox ──▶ reasoner thread (steps),
             pixels, vision tower)                            memory bank, sessions
    ask  ──▶ a mark in the same queue ──────────▶

In: frames and questions, from any thread. Out: answers, notes, counters. It knows nothing of ROS.

    with Engine(load_model('tiny-random')) as engine:
        engine.push(Frame(stamp_ns=0, camera='front', image=rgb))
        print(engine.ask(Question('what is on the table?')).result(timeout=10).text)
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tww_ros.config import EngineConfig
from tww_ros.engine.answering import question_ids
from tww_ros.engine.counters import Counters
from tww_ros.engine.keeper import Keeper
from tww_ros.engine.memory import Memory, identity_of, open_archive, quant_scheme
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.reasoner import DrainItem, QuestionItem, Reasoner
from tww_ros.engine.recall import note_ids
from tww_ros.engine.sessions import Sessions
from tww_ros.engine.standing import PendingWatch, check_question
from tww_ros.engine.watcher import JumpItem, RateItem, Watcher
from tww_ros.errors import (
    EngineClosedError,
    NothingSeenError,
    QuestionTooLongError,
    StoreError,
    UnknownCameraError,
)
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.store_files import DATABASE
from tww_ros.model.protocol import StepModel
from tww_ros.types import (
    AnswerPiece,
    EngineStats,
    Frame,
    LateFrame,
    Note,
    Question,
    SegmentInfo,
    WatchQuestion,
)

log = logging.getLogger(__name__)

# A token is at least one byte of text, and rarely more than sixteen characters: a text longer than
# this is refused before the tokenizer has to look at it.
CHARACTERS_PER_TOKEN = 16


class Engine:
    """One model, one memory, three threads. A context manager, or call start() and close()."""

    def __init__(self, model: StepModel, config: EngineConfig | None = None, *,
                 on_note: Callable[[Note], None] | None = None,
                 on_segment: Callable[[SegmentInfo], None] | None = None) -> None:
        """config: by default, the settings that the model was trained with.

        on_note and on_segment run on the reasoner's thread and must not block.
        """
        self.model = model
        self.config = config or EngineConfig.from_flat(model.settings)
        step = self.config.step
        # What is quickest may differ from one start to the next.
        model.set_attention('fixed' if step.deterministic and step.attention == 'auto' else
                            step.attention)
        identity = identity_of(model)
        self._bank: MemoryBank | None = None
        self._archive = open_archive(model, self.config.memory, identity, self._went)
        scheme = quant_scheme(model, self.config.memory)
        self._bank = MemoryBank(self.config.memory, scheme,
                                self._archive.has if self._archive.on_disk else None)
        self._sessions = Sessions(self.config.answer)
        self._counters = Counters()
        self._keeper = Keeper(model, self._bank, self._archive, self.config, self._counters,
                              lambda: self._reasoner.wake())
        self._reasoner = Reasoner(model, self._bank, self._keeper, self._sessions, self.config,
                                  self._counters, _guarded(on_note), _guarded(on_segment))
        self._watcher = Watcher(model, self._reasoner, self.config, self._counters)
        self.memory = Memory(self._bank, self._archive, identity, self._keeper)
        self._bank.on_forgotten = self._keeper.forget
        try:
            self._resume()
        except BaseException:
            # Or the folder would stay locked.
            self._archive.store.close()
            raise
        self._state = 'new'
        self._state_lock = threading.Lock()

    def start(self) -> Engine:
        """Start the threads."""
        with self._state_lock:
            if self._state != 'new':
                raise EngineClosedError(f'the engine is {self._state}; make a new one')
            self._state = 'running'
            self._keeper.start()
            self._reasoner.start()
            self._watcher.start()
        return self

    def close(self, timeout_s: float = 10.0) -> bool:
        """Stop the threads; open questions fail. False when a thread did not end in time."""
        with self._state_lock:
            self._state = 'closed'
        end_s = time.monotonic() + timeout_s
        self._reasoner.stop()
        self._watcher.stop()
        reasoner_ended = self._reasoner.join(timeout_s)
        watcher_ended = self._watcher.join(max(0.1, end_s - time.monotonic()))
        # Last: what the others leave is still written.
        self._keeper.stop()
        keeper_ended = self._keeper.join(max(0.1, end_s - time.monotonic()))
        return reasoner_ended and watcher_ended and keeper_ended

    @property
    def alive(self) -> bool:
        """Whether it watches and answers: started, not closed, and no thread failed for good."""
        return self._state == 'running' and self._reasoner.alive and self._watcher.alive

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def load(cls, model: StepModel, folder: str | Path, config: EngineConfig | None = None,
             **listeners: Any) -> Engine:
        """An engine that goes on with the memory in a folder; StoreError when there is none."""
        if not (Path(folder).expanduser() / DATABASE).is_file():
            raise StoreError(f'there is no memory at {folder}; expected a folder that was saved')
        config = config or EngineConfig.from_flat(model.settings)
        memory = dataclasses.replace(config.memory, folder=str(folder))
        return cls(model, dataclasses.replace(config, memory=memory), **listeners)

    # Watching

    def push(self, frame: Frame | LateFrame) -> bool:
        """Take a frame; never blocks. True if accepted, False when not running.

        A full queue drops its oldest frame. The image of a LateFrame is made only if it is
        watched.
        """
        return self.alive and self._watcher.push(frame)

    def feed(self, frame: Frame, timeout_s: float = 60.0) -> bool:
        """Take a frame, waiting for room and for notes: for offline use, where nothing may be
        dropped."""
        end_s = time.monotonic() + timeout_s
        return (self.alive and self._reasoner.wait_for_notes(timeout_s)
                and self._watcher.feed(frame, max(0.0, end_s - time.monotonic())))

    def drain(self, timeout_s: float = 60.0) -> bool:
        """Wait until all pushed frames are in memory, noted and written; False on timeout.

        Closes the open segments.
        """
        self._check_running()
        done = threading.Event()
        self._watcher.mark(DrainItem(done))
        end_s = time.monotonic() + timeout_s
        while not done.wait(min(0.1, max(0.0, end_s - time.monotonic()))):
            if (time.monotonic() >= end_s or self._state != 'running'
                    or not self._reasoner.alive):
                return False
        return self._keeper.flush(max(0.0, end_s - time.monotonic()))

    def set_sample_fps(self, sample_fps: float) -> None:
        """Watch so many frames per second of each camera from now on."""
        watch = dataclasses.replace(self.config.watch, sample_fps=sample_fps)
        self.config = dataclasses.replace(self.config, watch=watch)
        self._watcher.mark(RateItem(watch.sample_fps))

    def clock_went_back(self, now_ns: int) -> None:
        """The clock that the stamps are of was set back: a new epoch begins, as when stamps go
        back. It begins once, whether the stamps or the clock are seen to go back first."""
        self._watcher.mark(JumpItem(now_ns))

    # Asking

    def ask(self, question: Question) -> PendingAnswer:
        """Ask; returns at once. Raises QuestionError when it cannot be answered as asked."""
        self._check_running()
        self._check_length(question)
        self._check_cameras(question)
        pending = PendingAnswer(question)
        self._reasoner.desk.register(pending)
        self._watcher.mark(QuestionItem(pending))
        return pending

    def ask_stream(self, question: Question,
                   timeout_s: float | None = None) -> Iterator[AnswerPiece]:
        """Ask, and yield the answer piece by piece; the last piece carries the Answer."""
        return self.ask(question).pieces(timeout_s)

    def watch(self, question: WatchQuestion) -> PendingWatch:
        """Ask again each time a segment is closed and noted, until it is so; returns at once.

        Raises QuestionError when it cannot be asked so, BusyError when there are too many. Cameras
        that have not sent a frame yet are waited for.
        """
        self._check_running()
        self._check_length(check_question(question))
        return self._reasoner.standing.add(question)

    def end_questions(self, reason: str) -> None:
        """Fail the questions and standing questions under way; later ones are taken."""
        self._reasoner.standing.end(reason)
        self._reasoner.desk.fail_all(reason)

    def close_session(self, name: str) -> None:
        """Forget a session's rounds; UnknownSessionError when there is none of that name."""
        self._sessions.close(name)

    def stats(self) -> EngineStats:
        """Counters and the present state."""
        counted = self._counters.snapshot()
        counted['last_error'] = self._keeper.problem or counted['last_error']
        counted['segments'] = len(self.memory) + self._reasoner.open_segments
        return EngineStats(
            **counted,
            frames_waiting=counted['frames_received'] - sum(
                counted[f'frames_{end}'] for end in ('watched', 'skipped', 'dropped', 'rejected')),
            epochs=self._watcher.epoch + 1, notes_waiting=self._reasoner.notes_waiting,
            answers_active=self._reasoner.active,
            answers_waiting=max(0, len(self._reasoner.desk) - self._reasoner.active),
            sessions=len(self._sessions), watches=len(self._reasoner.standing),
            memory_bytes=self.memory.nbytes,
            session_bytes=self._sessions.nbytes, page_bytes=self.model.page_bytes,
            memory_tokens=self.memory.tokens)

    def _resume(self) -> None:
        """Take up what the folder remembers."""
        records, epochs = self._archive.restore()
        if not records and not epochs:
            return
        self._bank.restore(records)
        for episode in self._archive.episodes():
            note = Note(episode.segment_id, '', 0, 0, episode.text, episode.tokens, '', 0.0)
            self._bank.restore_episode(episode.segment_id, episode.last_id, episode.text,
                                       episode.tokens, len(note_ids(self.model, note)))
        epoch = max([*epochs, *(record.epoch for record in records)])
        newest_ns: dict[str, int] = {}
        for record in records:
            if record.epoch == epoch:
                newest_ns[record.camera] = max(record.end_ns, newest_ns.get(record.camera, 0))
        self._reasoner.resume(epoch, self._archive.next_order)
        zero_ns = epochs.get(epoch, min(newest_ns.values(), default=0))
        self._watcher.resume(epoch, zero_ns, newest_ns)
        self._keeper.preload(epoch)
        if self.config.note.enabled:
            self._reasoner.note_again(unnoted(records, self.config.note.backlog))
        log.info('memory of %d segments from %s', len(records), self.config.memory.folder)

    def _went(self, segment_id: int, name: str) -> None:
        """The folder's cap removed something: a segment's KV, its note's, or all of it ('')."""
        if name in ('', 'segment') and self._bank is not None:
            self._archive.lose(segment_id)
            self._bank.lose(segment_id)

    def _check_running(self) -> None:
        if self._state != 'running':
            raise EngineClosedError(f'the engine is {self._state}; call start() or use it in a '
                                    'with statement')
        if not self._watcher.alive:
            raise EngineClosedError(f'the watcher has ended ({self._counters.last_error}); make a '
                                    'new engine')
        if not self._reasoner.alive:
            raise EngineClosedError(f'the reasoner has ended ({self._counters.last_error}); make '
                                    'a new engine')

    def _check_length(self, question: Question) -> None:
        limits = self.config.answer
        characters = len(question.text) + sum(map(len, question.choices))
        if characters > limits.max_question_tokens * CHARACTERS_PER_TOKEN:
            raise QuestionTooLongError(
                f'the question is too long: {characters} characters, and at most '
                f'{limits.max_question_tokens} tokens are read; shorten it, or '
                'raise answer.max_question_tokens')
        tokens = len(question_ids(self.model, question))
        if tokens > limits.max_question_tokens:
            raise QuestionTooLongError(
                f'the question is too long: {tokens} tokens, at most '
                f'{limits.max_question_tokens}; shorten it, or raise '
                'answer.max_question_tokens')

    def _check_cameras(self, question: Question) -> None:
        cameras = self._watcher.cameras
        unknown = sorted(set(question.cameras) - cameras)
        if unknown:
            raise UnknownCameraError(f'no frame has come from camera {", ".join(unknown)}; '
                                     f'cameras seen: {", ".join(sorted(cameras)) or "none"}')
        if not cameras:
            raise NothingSeenError('no frame has arrived yet; check the camera topic, or ask '
                                   'later')


def unnoted(records: Sequence[SegmentRecord], most: int) -> list[SegmentRecord]:
    """The newest segments that were kept when their notes were not written yet, oldest first:
    those that a note can be written about, because their keys are on the device again."""
    newest = itertools.takewhile(lambda record: record.note is None, reversed(records))
    held = [record for record in newest if record.block is not None]
    return held[:most][::-1]


def _guarded(listener: Callable[[Any], None] | None) -> Callable[[Any], None]:
    """A listener whose own faults end in the log and not in the reasoner."""
    def call(value: Any) -> None:
        if listener is not None:
            try:
                listener(value)
            except Exception:
                log.exception('a listener of the engine failed')
    return call
