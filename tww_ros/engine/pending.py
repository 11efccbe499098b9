"""PendingAnswer: a question on its way, seen from the caller's side.

The caller waits, streams, listens or cancels from any thread; the reasoner writes pieces and the
end. Listeners run on the thread that causes the event (usually the reasoner) and must not block.
A listener hears the pieces one at a time and in order, whichever threads bring them, because a
piece added late or out of turn would garble the text that it builds.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from tww_ros.errors import AnswerTimeoutError, CancelledError, TwwError
from tww_ros.types import Answer, AnswerPiece, Question

log = logging.getLogger(__name__)


class _PieceListener:
    """A listener, how many pieces it was given, and whether it is at one now."""

    def __init__(self, call: Callable[[AnswerPiece], None]) -> None:
        self.call = call
        self.heard = 0
        self.busy = False


class PendingAnswer:
    """The answer to one question, complete or not. Made by `Engine.ask`."""

    _numbers = itertools.count()

    def __init__(self, question: Question) -> None:
        self.question = question
        self.number = next(self._numbers)
        self.asked_s = time.monotonic()
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.position: Callable[[PendingAnswer], int] = lambda _: 0
        # The engine's books, kept before anybody learns of the end: who has it may ask again.
        self.on_end: Callable[[PendingAnswer, TwwError | None], None] = lambda *_: None
        # And who sleeps until something ends is woken when it has.
        self.on_ended: Callable[[], None] = lambda: None
        self.on_first_token: Callable[[PendingAnswer], None] = lambda _: None
        self._future: Future[Answer] = Future()
        self._pieces: list[AnswerPiece] = []
        self._changed = threading.Condition()
        self._piece_listeners: list[_PieceListener] = []
        self._done_listeners: list[Callable[[PendingAnswer], None]] = []

    # The caller's side

    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Answer:
        """The answer; raises its error, or TimeoutError after `timeout` seconds."""
        try:
            return self._future.result(timeout)
        except FutureTimeoutError:
            # Another class than the built-in one before Python 3.11.
            raise TimeoutError(f'no complete answer within {timeout} s; wait longer, or cancel it'
                               ) from None

    def error(self) -> BaseException | None:
        """The error of a finished question, None when it was answered or is still under way."""
        return self._future.exception() if self._future.done() else None

    def text(self) -> str:
        """What has been written so far."""
        with self._changed:
            return ''.join(piece.text for piece in self._pieces)

    def pieces(self, timeout_s: float | None = None) -> Iterator[AnswerPiece]:
        """Pieces as they come, the last one with the Answer.

        TimeoutError when none comes for `timeout_s`.
        """
        for index in itertools.count():
            with self._changed:
                arrived = self._changed.wait_for(
                    lambda index=index: index < len(self._pieces) or self.done(), timeout_s)
                if not arrived:
                    raise TimeoutError(f'no piece of the answer came for {timeout_s} s')
                if index >= len(self._pieces):
                    self._future.result()
                    return
                piece = self._pieces[index]
            yield piece
            if piece.answer is not None:
                return

    def cancel(self) -> bool:
        """Stop the answer within one step; False when it was complete already."""
        return self.fail(CancelledError(
            f'the question {_short(self.question.text)!r} was cancelled'))

    def queue_position(self) -> int:
        """Questions in front of this one; 0 = being answered, or done."""
        return 0 if self.done() or self.started_s is not None else self.position(self)

    def add_piece_listener(self, listener: Callable[[AnswerPiece], None]) -> None:
        """Call `listener` with every piece, those that came before included."""
        added = _PieceListener(listener)
        with self._changed:
            self._piece_listeners.append(added)
        self._deliver(added)

    def add_done_callback(self, listener: Callable[[PendingAnswer], None]) -> None:
        """Call `listener` when the answer is complete or has failed; at once if it is already."""
        with self._changed:
            if not self.done():
                self._done_listeners.append(listener)
                return
        _call(listener, self)

    # The engine's side

    def begin(self) -> None:
        """Its first token is there, or what comes instead; later ones change nothing."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic()
            self.on_first_token(self)

    def write(self, text: str) -> None:
        """Add a piece."""
        with self._changed:
            if not text or self._future.done():
                return
            self._pieces.append(AnswerPiece(text))
            listeners = list(self._piece_listeners)
            self._changed.notify_all()
        for listener in listeners:
            self._deliver(listener)

    def complete(self, answer: Answer, text: str = '') -> None:
        """End with an answer; `text` is what its last piece adds."""
        self._finish(None, AnswerPiece(text, answer))

    def fail(self, error: TwwError) -> bool:
        """End with an error; False when it had ended before."""
        return self._finish(error, None)

    def expired(self, now_s: float) -> bool:
        """End with AnswerTimeoutError when the question's time is up."""
        limit_s = self.question.timeout_s
        if not limit_s or now_s - self.asked_s < limit_s:
            return False
        return self.fail(AnswerTimeoutError(
            f'no complete answer within {limit_s:g} s (waited for {self.queue_position()} '
            f'questions in front, wrote {len(self.text())} characters); allow more time or ask '
            'for fewer tokens'))

    def _finish(self, error: TwwError | None, last: AnswerPiece | None) -> bool:
        with self._changed:
            if self._future.done():
                return False
            self.on_end(self, error)
            if last is not None:
                self._pieces.append(last)
                self._future.set_result(last.answer)
            else:
                self._future.set_exception(error)
            listeners, self._done_listeners = self._done_listeners, []
            piece_listeners = list(self._piece_listeners)
            self._changed.notify_all()
        self.on_ended()
        for piece_listener in piece_listeners:
            self._deliver(piece_listener)
        for listener in listeners:
            _call(listener, self)
        return True

    def _deliver(self, listener: _PieceListener) -> None:
        """Give a listener what it has not heard; when it is busy, the thread it is in does so."""
        while True:
            with self._changed:
                if listener.busy or listener.heard == len(self._pieces):
                    return
                piece = self._pieces[listener.heard]
                listener.heard += 1
                listener.busy = True
            try:
                _call(listener.call, piece)
            finally:
                with self._changed:
                    listener.busy = False


def _call(listener: Callable, value: object) -> None:
    # A caller's fault must not end the thread that answers everybody else.
    try:
        listener(value)
    except Exception:
        log.exception('a listener of an answer failed')


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + '...'
