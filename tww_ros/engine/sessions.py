"""Sessions: conversations that do not see each other.

In: finished rounds (a question's block and its answer's blocks). Out: the entries of a session's
earlier rounds, each with its place in time, to be merged with memory into a view. Beyond the token
budget the oldest round is forgotten; beyond the number of sessions the one that was idle for
longest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from tww_ros.config import AnswerConfig
from tww_ros.errors import UnknownSessionError
from tww_ros.memory.view import Entry

Place = tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """One question and its answer; `after` = order of the newest segment when it was asked.

    words: of both, for finding what a follow-up is about.
    """

    after: int
    entries: tuple[Entry, ...]
    words: str = ''

    @property
    def tokens(self) -> int:
        """Tokens of question and answer."""
        return sum(entry.block.length for entry in self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(entry.block.nbytes for entry in self.entries)


@dataclass
class Session:
    """The rounds of one conversation, oldest first; `busy` while one is being answered.

    kept: False for one that ends with its first answer and leaves nothing behind.
    """

    name: str
    rounds: list[Round] = field(default_factory=list)
    forgotten: int = 0
    busy: bool = False
    kept: bool = True

    @property
    def newest_words(self) -> str:
        """Of its last round."""
        return self.rounds[-1].words if self.rounds else ''

    def forget_oldest(self) -> None:
        """Drop the oldest round; those that remain keep their places."""
        self.rounds.pop(0)
        self.forgotten += 1

    def entries(self) -> list[tuple[Place, Entry]]:
        """Every block of the earlier rounds with its place: behind the segment it came after."""
        return [((past.after, 2, number, part), entry)
                for number, past in enumerate(self.rounds, start=self.forgotten)
                for part, entry in enumerate(past.entries)]


class Sessions:
    """All sessions by name."""

    def __init__(self, config: AnswerConfig) -> None:
        self._config = config
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that all rounds hold."""
        with self._lock:
            return self._count_bytes()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, name: str) -> Session:
        """The session of that name, made when it is new."""
        with self._lock:
            session = self._sessions.setdefault(name, Session(name))
            self._sessions.move_to_end(name)
            idle = [old for old, other in self._sessions.items()
                    if not other.busy and other is not session]
            for old in idle[:max(0, len(self._sessions) - self._config.max_sessions)]:
                del self._sessions[old]
            return session

    def add(self, session: Session, finished: Round) -> None:
        """Append a round, and forget the oldest ones while there are too many tokens or bytes."""
        with self._lock:
            session.rounds.append(finished)
            while sum(past.tokens for past in session.rounds) > self._config.session_tokens:
                session.forget_oldest()
            # Those idle for longest come first in the table; the newest round goes last of all.
            for other in [*self._sessions.values(), session]:
                while other.rounds and self._count_bytes() > self._config.sessions_bytes:
                    other.forget_oldest()

    def _count_bytes(self) -> int:
        return sum(past.nbytes for session in self._sessions.values() for past in session.rounds)

    def close(self, name: str) -> None:
        """Forget a session; an answer under way is still completed."""
        with self._lock:
            if self._sessions.pop(name, None) is None:
                known = ', '.join(map(repr, self._sessions)) or 'none'
                raise UnknownSessionError(f'there is no session {name!r} to close; open sessions: '
                                          f'{known}')
