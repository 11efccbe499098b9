"""A video file → frames with stamps, one at a time.

In: a path that FFmpeg (through PyAV) can decode. Out: `Frame`s, RGB, in presentation order,
stamped with `start_ns` + time since the first frame. It knows nothing of ROS and holds one frame
at a time.

Stamps are made from the container's own ticks as exact fractions, so that 30000/1001 frames per
second do not drift. Phone videos are stored sideways with a rotation mark; they come out upright.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from tww_ros.errors import ReplayError
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.sampling import FrameSampler


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. duration_s and frames are 0 when the container does not say."""

    path: Path
    width: int
    height: int
    fps: float
    duration_s: float
    frames: int
    codec: str


def read_video(path: str | Path, *, start_s: float = 0.0, end_s: float | None = None,
               fps: float | None = None, camera: str = 'camera',
               start_ns: int = 0) -> Iterator[Frame]:
    """Frames with start_s <= time < end_s, thinned to about fps per second (None = all of them).

    time counts from the video's first frame; stamp_ns = start_ns + time, whatever start_s is.
    Raises ReplayError for a missing or unreadable file, one without video, one that breaks off.
    """
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        end = 'the end' if end_s is None else f'{end_s:g} s'
        raise ReplayError(f'expected 0 ≤ start < end, got {start_s:g} s to {end}')
    return _read(_checked(path), start_s, end_s, None if fps is None else FrameSampler(fps),
                 camera, start_ns)


def video_info(path: str | Path) -> VideoInfo:
    """Size, rate and length; decodes one frame, so a file that passes can be read."""
    path = _checked(path)
    with _open(path) as container:
        stream = _stream(container, path)
        first = next(_decode(container, stream, path), None)
        if first is None:
            raise ReplayError(f'{path}: expected video frames, got none; the file may be cut off')
        height, width = _upright(first).shape[:2]
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration is not None:
            duration_s = float(stream.duration * stream.time_base)
        else:
            duration_s = (container.duration or 0) / 1_000_000         # FFmpeg counts it in µs
        return VideoInfo(path, width, height, float(rate or 0), duration_s, stream.frames,
                         stream.codec_context.name)


def _read(path: Path, start_s: float, end_s: float | None, sampler: FrameSampler | None,
          camera: str, start_ns: int) -> Iterator[Frame]:
    start_after_ns = round(start_s * NS_PER_S)
    end_before_ns = None if end_s is None else round(end_s * NS_PER_S)
    found = False
    with _open(path) as container:
        stream = _stream(container, path)
        stream.thread_type = 'AUTO'
        _seek(container, stream, start_s)
        for index, picture in enumerate(_decode(container, stream, path)):
            found = True
            time_ns = _time_ns(picture, stream, index)
            if end_before_ns is not None and time_ns >= end_before_ns:
                break
            if time_ns < start_after_ns or (sampler and not sampler.accept(time_ns)):
                continue
            yield Frame(start_ns + time_ns, camera, _upright(picture))
    if not found:
        raise ReplayError(f'{path}: expected video frames, got none; the file may be cut off')


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise ReplayError(f'{path}: no such video file; check the path')
    if not path.is_file():
        raise ReplayError(f'{path}: expected a video file, got a folder; name the file in it')
    return path


def _open(path: Path):
    import av
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise ReplayError(f'{path}: expected a video, but it cannot be opened '
                          f'({_reason(error)}); it may be cut off or of another type') from error


def _stream(container, path: Path):
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams}) or ['nothing']
        raise ReplayError(f'{path}: expected a video stream, got {", ".join(kinds)}; '
                          'choose a file with pictures')
    return container.streams.video[0]


def _decode(container, stream, path: Path):
    import av
    try:
        yield from container.decode(stream)
    except (av.error.FFmpegError, OSError) as error:
        raise ReplayError(f'{path}: the video cannot be decoded any further ({_reason(error)}); '
                          'it may be damaged, re-encode it or end before that point') from error


def _seek(container, stream, start_s: float) -> None:
    import av
    ticks = int(Fraction(start_s) / stream.time_base) + (stream.start_time or 0)
    if ticks > 0:
        try:
            container.seek(ticks, stream=stream)
        except av.error.FFmpegError:
            container.seek(0)       # cannot seek there: decode from the start and drop frames


def _time_ns(picture, stream, index: int) -> int:
    if picture.pts is None:                        # a raw stream has no stamps, only an order
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return round(index / Fraction(rate) * NS_PER_S)
    ticks = max(0, picture.pts - (stream.start_time or 0))
    return round(ticks * Fraction(picture.time_base) * NS_PER_S)


def _upright(picture) -> np.ndarray:
    """uint8 [H, W, 3]"""
    image = picture.to_ndarray(format='rgb24')                                        # [H, W, 3]
    quarter_turns = round(picture.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or type(error).__name__
