"""Counters that several threads add to; read without stopping anybody."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Counters:
    """See `types.EngineStats` for their meaning."""

    frames_received: int = 0
    frames_watched: int = 0
    frames_skipped: int = 0
    frames_dropped: int = 0
    frames_rejected: int = 0
    segments: int = 0
    notes_written: int = 0
    notes_skipped: int = 0
    answers_done: int = 0
    answers_failed: int = 0
    answers_cancelled: int = 0
    steps: int = 0
    step_tokens: int = 0
    tokens_seen: int = 0
    tokens_dropped: int = 0
    newest_ns: int = 0
    ingest_lag_s: float = 0.0
    first_token_s: float = 0.0
    answer_s: float = 0.0
    last_error: str = ''
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def snapshot(self) -> dict[str, Any]:
        """All counters by name, read at one moment: their sums hold."""
        with self._lock:
            return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.repr}
