"""What the node is doing → /diagnostics: one line a human understands, and the numbers behind it.

In: the last MemoryStatus, and how each subscribed topic does. Out: one DiagnosticStatus for each
camera, the pose, ingest, memory, model, queries and time; names and keys stay as they are
(docs/ros.md). It keeps no state but the previous counters and when something last happened, so
that a loss is reported while it happens and not for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from tww_interfaces.msg import MemoryStatus

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
# Discovery takes this long; then a camera without a publisher is told of.
DISCOVERY_S = 0.9
STALE_S = 5.0
LAG_S = 5.0
# How long a jump of time or an error of the engine is shown.
SHOWN_S = 30.0

Entry = tuple[bytes, str, dict[str, Any]]


@dataclass(frozen=True)
class TopicState:
    """One subscribed topic as the node sees it.

    kind: 'camera' or 'pose'. silent_s: since the last message, or since it was subscribed to.
    publishers: those whose messages can arrive. mismatch: why those of others cannot, and what to
    do. elsewhere: topics where such messages are published. malformed: what was wrong with a
    recent message.
    """

    kind: str
    name: str
    topic: str
    messages: int
    silent_s: float
    publishers: int
    rate_hz: float = 0.0
    subscribed: bool = True
    mismatch: str = ''
    elsewhere: tuple[str, ...] = ()
    malformed: str = ''

    def complaint(self) -> str:
        """Why no messages arrive and what to do, or empty."""
        if not self.subscribed or self.silent_s < DISCOVERY_S:
            return ''
        if self.publishers == 0:
            return self.mismatch or f'{self.topic}: no publisher; {self._where()}'
        if self.silent_s < STALE_S:
            return ''
        if self.messages == 0:
            return (f'{self.topic}: {self.publishers} publishers and no message yet; check that '
                    'the driver runs, and the network')
        return f'{self.topic}: no message for more than {STALE_S:g} s; check the driver'

    def _where(self) -> str:
        if not self.elsewhere:
            return 'start the driver, or check the topic name and remappings'
        others = ', '.join(self.elsewhere)
        hint = (' (set image_transport to compressed for those that end so)'
                if '/compressed' in others and not self.topic.endswith('/compressed') else '')
        return f'remap it to where there is one: {others}{hint}'


class Diagnostics:
    """Makes a DiagnosticArray from each new status; clock: of this machine, in seconds."""

    def __init__(self, hardware_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._hardware_id = hardware_id
        self._clock = clock
        self._before = MemoryStatus()
        self._engine = 0
        self._at_s = clock()
        self._jumped_s = self._erred_s = float('-inf')

    def report(self, status: MemoryStatus, topics: list[TopicState],
               engine: int = 0) -> DiagnosticArray:
        """The entries, each OK, WARN or ERROR. engine: its number; another has other epochs."""
        now_s = self._clock()
        passed_s, self._at_s = now_s - self._at_s, now_s
        before, self._before = self._before, status
        if engine == self._engine and 0 < before.epochs < status.epochs:
            self._jumped_s = now_s
        self._engine = engine
        if status.last_error not in ('', before.last_error):
            self._erred_s = now_s
        entries = {
            'model': _model(status),
            'ingest': _ingest(status, before, passed_s),
            'memory': _memory(status, before, now_s - self._erred_s < SHOWN_S),
            'queries': _queries(status, before),
            'time': _time(status, now_s - self._jumped_s < SHOWN_S),
        }
        for state in topics:
            name = f'camera {state.name}' if state.kind == 'camera' else state.kind
            entries[name] = _topic(state)
        array = DiagnosticArray(status=[DiagnosticStatus(
            level=level, name=f'{self._hardware_id}: {name}', message=message,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
            for name, (level, message, values) in entries.items()])
        array.header.stamp = status.stamp
        return array


def _topic(state: TopicState) -> Entry:
    values = {
        'topic': state.topic, 'messages': state.messages, 'rate Hz': f'{state.rate_hz:.1f}',
        'seconds since the last': f'{state.silent_s:.1f}', 'publishers': state.publishers,
    }
    if not state.subscribed:
        return OK, 'not subscribed: the node is not active', values
    complaint = state.complaint() or state.mismatch
    if complaint or state.malformed:
        return WARN, complaint or state.malformed, values
    if state.messages == 0:
        return OK, 'waiting for the first message', values
    return OK, f'{state.rate_hz:.1f} messages per second', values


def _model(status: MemoryStatus) -> Entry:
    loaded = status.state in (MemoryStatus.ACTIVE, MemoryStatus.INACTIVE)
    values = {
        'model': status.model, 'device': status.device, 'quantization': status.quantization,
        'positions': status.positions, 'description': status.description,
        # Loading ends with it, and fails when it does.
        '4-bit self-test': ('not 4-bit' if status.quantization != 'nf4'
                            else 'passed' if loaded else 'not passed'),
    }
    level, message = {
        MemoryStatus.UNCONFIGURED: (WARN, 'no model is loaded; configure the node'),
        MemoryStatus.LOADING: (WARN, f'loading the model ({status.loading_progress:.0%})'),
        MemoryStatus.INACTIVE: (OK, 'loaded and inactive: nothing is watched or answered'),
        MemoryStatus.ACTIVE: (OK, status.description or 'loaded'),
        MemoryStatus.FAILED: (ERROR, status.last_error or 'failed'),
    }.get(status.state, (WARN, 'shutting down'))
    return level, message, values


def _ingest(status: MemoryStatus, before: MemoryStatus, passed_s: float) -> Entry:
    lag_s = _seconds(status.ingest_lag)
    values = {
        'lag s': f'{lag_s:.3f}', 'images received': status.images_received,
        'images rejected': status.images_rejected, 'images ignored': status.images_ignored,
        'frames watched': status.frames_watched, 'frames skipped': status.frames_skipped,
        'frames dropped': status.frames_dropped, 'frames rejected': status.frames_rejected,
        'frames waiting': status.frames_waiting,
    }
    dropped = _more(status, before, 'frames_dropped')
    rejected = _more(status, before, 'frames_rejected') + _more(status, before, 'images_rejected')
    watched = _more(status, before, 'frames_watched')
    if dropped:
        return WARN, (f'{dropped} frames dropped since the last time; lower watch.sample_fps or '
                      'watch.max_pixels'), values
    if rejected:
        return WARN, (f'{rejected} images rejected since the last time: out of order or '
                      'malformed; the log says which'), values
    if lag_s > LAG_S and status.frames_waiting:
        return WARN, (f'memory is {lag_s:.1f} s behind the cameras; lower watch.sample_fps or '
                      'watch.max_pixels'), values
    if status.state != MemoryStatus.ACTIVE:
        return OK, 'not watching: the node is not active', values
    if not status.ingest_enabled:
        return OK, 'ingest is disabled', values
    return OK, f'watching, {watched / max(passed_s, 0.1):.1f} frames per second', values


def _memory(status: MemoryStatus, before: MemoryStatus, erred: bool) -> Entry:
    values = {
        'segments': status.segments, 'tokens': status.memory_tokens,
        'KV bytes': status.memory_bytes, 'device bytes': status.device_bytes,
        'quantized bytes': status.quantized_bytes, 'host bytes': status.host_bytes,
        'disk bytes': status.disk_bytes, 'session bytes': status.session_bytes,
        'notes written': status.notes_written, 'notes waiting': status.notes_waiting,
        'notes skipped': status.notes_skipped, 'last error': status.last_error,
    }
    skipped = _more(status, before, 'notes_skipped')
    if erred and status.state != MemoryStatus.FAILED:
        return WARN, status.last_error, values
    if skipped:
        return WARN, (f'{skipped} segments got no note since the last time; raise '
                      'watch.segment_s or lower note.max_new_tokens'), values
    return OK, (f'{status.segments} segments, {status.memory_bytes / 1e6:.1f} MB of keys and '
                'values'), values


def _queries(status: MemoryStatus, before: MemoryStatus) -> Entry:
    values = {
        'active': status.answers_active, 'waiting': status.answers_waiting,
        'answered': status.answers_done, 'failed': status.answers_failed,
        'cancelled': status.answers_cancelled, 'sessions': status.sessions,
        'standing questions': status.watches,
        'first token s': f'{_seconds(status.first_token_time):.3f}',
        'answer s': f'{_seconds(status.answer_time):.3f}',
    }
    failed = _more(status, before, 'answers_failed')
    if failed:
        return WARN, (f'{failed} questions failed or ran out of time since the last time; the log '
                      'says why'), values
    return OK, f'{status.answers_active} being answered, {status.answers_waiting} waiting', values


def _time(status: MemoryStatus, jumped: bool) -> Entry:
    newest_s = _seconds(status.newest)
    values = {
        'epochs': status.epochs,
        'newest frame s': f'{newest_s:.3f}',
        'newest frame age s': f'{_seconds(status.stamp) - newest_s:.3f}' if newest_s else '',
    }
    if jumped:
        return WARN, (f'the stamps jumped back: epoch {status.epochs} has begun, and questions do '
                      'not see what was before'), values
    return OK, 'stamps go forward', values


def _more(status: MemoryStatus, before: MemoryStatus, name: str) -> int:
    return max(0, getattr(status, name) - getattr(before, name))


def _seconds(moment: Any) -> float:
    return moment.sec + moment.nanosec / 1e9
