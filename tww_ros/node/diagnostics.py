"""What the node is doing → /diagnostics: one line a human understands, and the numbers behind it.

In: the last MemoryStatus, when each camera last sent an image, how many publishers it has. It
keeps no state but the previous counters, so that drops are reported while they happen and not for
ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from tww_interfaces.msg import MemoryStatus

STALE_S = 5.0


@dataclass(frozen=True)
class CameraState:
    """One camera as the node sees it; silent_s: since the last image, or since start."""

    name: str
    topic: str
    images: int
    silent_s: float
    publishers: int

    def complaint(self) -> str:
        """Why no images arrive, or empty."""
        if self.silent_s < STALE_S:
            return ''
        if self.publishers == 0:
            return f'{self.topic}: no publisher; check the topic name and remappings'
        if self.images == 0:
            return (f'{self.topic}: {self.publishers} publishers and no image yet; check QoS '
                    '(parameter image_reliability), image_transport and the network')
        return f'{self.topic}: no image for more than {STALE_S:g} s'


class Diagnostics:
    """Makes a DiagnosticArray from each new status."""

    def __init__(self, hardware_id: str) -> None:
        self._hardware_id = hardware_id
        self._dropped = 0

    def report(self, status: MemoryStatus, cameras: list[CameraState]) -> DiagnosticArray:
        """OK, WARN (a camera is silent, frames are dropped, still loading) or ERROR (failed)."""
        level, message = self._judge(status, cameras)
        values = {
            'model': status.model, 'frames watched': status.frames_watched,
            'frames dropped': status.frames_dropped, 'frames waiting': status.frames_waiting,
            'images rejected': status.images_rejected, 'notes waiting': status.notes_waiting,
            'answers active': status.answers_active, 'answers waiting': status.answers_waiting,
            'memory bytes': status.memory_bytes, 'last error': status.last_error,
            'ingest lag s': f'{status.ingest_lag.sec + status.ingest_lag.nanosec / 1e9:.3f}',
        }
        for camera in cameras:
            values[f'{camera.name}: images'] = camera.images
            values[f'{camera.name}: seconds since the last'] = f'{camera.silent_s:.1f}'
        array = DiagnosticArray(status=[DiagnosticStatus(
            level=level, name=f'{self._hardware_id}: memory', message=message,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])])
        array.header.stamp = status.stamp
        return array

    def _judge(self, status: MemoryStatus, cameras: list[CameraState]) -> tuple[bytes, str]:
        dropped = status.frames_dropped - self._dropped
        self._dropped = status.frames_dropped
        if status.state == MemoryStatus.FAILED:
            return DiagnosticStatus.ERROR, status.last_error or 'failed'
        if status.state != MemoryStatus.ACTIVE:
            return DiagnosticStatus.WARN, 'loading the model'
        complaints = [text for text in (camera.complaint() for camera in cameras) if text]
        if complaints:
            return DiagnosticStatus.WARN, '; '.join(complaints)
        if dropped:
            return DiagnosticStatus.WARN, (f'{dropped} frames dropped since the last time; lower '
                                           'watch.sample_fps or watch.max_pixels')
        return DiagnosticStatus.OK, 'watching' if status.ingest_enabled else 'ingest is disabled'
