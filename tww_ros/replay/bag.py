"""rosbag2 directories: read them message by message, and make one from a video.

In: a bag (a rosbag2 folder, or one .mcap or .db3 file), or a video. Out: `BagMessage`s with the
message still in CDR bytes, or a folder that `ros2 bag play` accepts. Works without ROS, through
`rosbags`; publishing lives in `tww_ros.node`. One message (with MCAP: one chunk) is in memory at a
time, never the whole bag.

Bags are written in metadata version 8, which Humble reads too, and with a fixed start time, so
that the same video always gives the same stamps.
"""

from __future__ import annotations

import io
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tww_ros.errors import ReplayError
from tww_ros.replay.video import read_video, video_info
from tww_ros.types import NS_PER_S, Frame

DEFAULT_START_NS = 1_700_000_000 * NS_PER_S
STORAGES = ('mcap', 'sqlite3')
COMPRESSIONS = ('jpeg', 'png')


@dataclass(frozen=True)
class BagMessage:
    """One recorded message. t_ns: when it was received; data: CDR with its 4-byte header."""

    t_ns: int
    topic: str
    msgtype: str
    data: bytes


@dataclass(frozen=True)
class BagTopic:
    """One topic of a bag."""

    name: str
    msgtype: str
    messages: int


@dataclass(frozen=True)
class BagInfo:
    """What a bag holds; start_ns and end_ns are 0 when it holds nothing."""

    path: Path
    storage: str
    start_ns: int
    end_ns: int
    messages: int
    topics: tuple[BagTopic, ...]
    size_bytes: int

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / NS_PER_S


class Bag:
    """The messages of a bag in recorded order; each `for` over it starts from the beginning."""

    def __init__(self, path: str | Path, topics: Collection[str] | None = None) -> None:
        self.path = Path(path)
        self.info = bag_info(self.path)
        known = {topic.name for topic in self.info.topics}
        if unknown := sorted(set(topics or ()) - known):
            raise ReplayError(f'{self.path}: expected topics of this bag ({_listed(known)}), got '
                              f'{_listed(unknown)}')
        self.topics = tuple(sorted(known if topics is None else set(topics)))

    def __iter__(self) -> Iterator[BagMessage]:
        with _Reading(self.path) as reader:
            chosen = [c for c in reader.connections if c.topic in self.topics]
            if chosen:
                for connection, t_ns, data in reader.messages(chosen):
                    yield BagMessage(t_ns, connection.topic, connection.msgtype, data)


def read_bag(path: str | Path, topics: Collection[str] | None = None) -> Bag:
    """The messages of a bag, of all topics or of some; ReplayError when it cannot be read."""
    return Bag(path, topics)


def bag_info(path: str | Path) -> BagInfo:
    """Times, topics and counts, from the bag's own index; ReplayError when it cannot be read."""
    path = Path(path)
    with _Reading(path) as reader:
        storages = {'.mcap': 'mcap', '.db3': 'sqlite3'}
        files = sorted(f for f in (path.iterdir() if path.is_dir() else [path])
                       if f.suffix in (*storages, '.zstd'))
        suffixes = files[0].suffixes if files else []
        storage = next((storages[s] for s in suffixes if s in storages), 'unknown')
        topics: dict[tuple[str, str], int] = {}
        for connection in reader.connections:
            key = (connection.topic, connection.msgtype)
            topics[key] = topics.get(key, 0) + connection.msgcount
        filled = reader.message_count > 0
        return BagInfo(path, storage, reader.start_time if filled else 0,
                       reader.end_time - 1 if filled else 0, reader.message_count,
                       tuple(BagTopic(*key, count) for key, count in sorted(topics.items())),
                       sum(f.stat().st_size for f in files))


def write_bag_from_video(video: str | Path, out: str | Path, *, storage: str = 'mcap',
                         compressed: str | None = None, topic: str = '/image',
                         fps: float | None = None, start_ns: int = DEFAULT_START_NS,
                         max_seconds: float | None = None, frame_id: str = 'camera',
                         progress: bool = True) -> BagInfo:
    """Make a bag of `sensor_msgs/Image` (rgb8) or, compressed, `CompressedImage` from a video.

    compressed: None, 'jpeg' or 'png'; '/compressed' is then added to the topic, as image_transport
    names it. fps: thin the frames out. The folder appears when it is complete, or not at all.
    Raises ReplayError when `out` exists, when the video cannot be read, or for unknown options.
    """
    out = Path(out).absolute()
    if storage not in STORAGES:
        raise ReplayError(f'expected a storage of {_listed(STORAGES)}, got {storage!r}')
    if compressed is not None and compressed not in COMPRESSIONS:
        raise ReplayError(f'expected a compression of {_listed(COMPRESSIONS)} or none, got '
                          f'{compressed!r}')
    if not topic.startswith('/') or len(topic) < 2:
        raise ReplayError(f'expected a topic like /image, got {topic!r}')
    if out.exists():
        raise ReplayError(f'{out} exists already; choose another name or remove it first')
    info = video_info(video)
    seconds = min(info.duration_s, max_seconds or info.duration_s)
    total = round(seconds * min(info.fps, fps or info.fps)) or None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    except OSError as error:
        raise ReplayError(f'{out}: cannot write there ({error.strerror}); choose another folder'
                          ) from error
    try:
        frames = read_video(video, end_s=max_seconds, fps=fps, start_ns=start_ns)
        _write(_counted(frames, total, progress), partial / out.name, storage, compressed, topic,
               frame_id)
        (partial / out.name).rename(out)
    except OSError as error:
        raise ReplayError(f'{out}: writing the bag failed ({error.strerror or error})') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bag_info(out)


def _write(frames: Iterator[Frame], out: Path, storage: str, compressed: str | None, topic: str,
           frame_id: str) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    kind = 'sensor_msgs/msg/CompressedImage' if compressed else 'sensor_msgs/msg/Image'
    if compressed and not topic.endswith('/compressed'):
        topic += '/compressed'
    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    with Writer(out, version=8, storage_plugin=plugin) as writer:
        connection = writer.add_connection(topic, kind, typestore=store)
        for frame in frames:
            seconds, nanoseconds = divmod(frame.stamp_ns, NS_PER_S)
            stamp = types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
            header = types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame_id)
            if compressed:
                message = types[kind](header=header, format=f'rgb8; {compressed} compressed bgr8',
                                      data=_encode(frame.image, compressed))
            else:
                height, width = frame.image.shape[:2]
                message = types[kind](header=header, height=height, width=width, encoding='rgb8',
                                      is_bigendian=0, step=3 * width, data=frame.image.reshape(-1))
            writer.write(connection, frame.stamp_ns, store.serialize_cdr(message, kind))


def _encode(image: np.ndarray, compressed: str) -> np.ndarray:
    """uint8 [bytes]: the picture as a JPEG or PNG file."""
    from PIL import Image
    buffer = io.BytesIO()
    options = {'quality': 90} if compressed == 'jpeg' else {'compress_level': 1}
    Image.fromarray(image).save(buffer, format=compressed.upper(), **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _counted(frames: Iterator[Frame], total: int | None, shown: bool) -> Iterator[Frame]:
    from tqdm import tqdm
    return tqdm(frames, total=total, unit='frame', desc='writing the bag', disable=not shown)


class _Reading:
    """An open rosbags reader whose every failure is a ReplayError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self):
        from rosbags.rosbag2 import Reader
        if not self._path.exists():
            raise ReplayError(f'{self._path}: no such bag; check the path')
        try:
            self._reader = Reader(self._path)
            self._reader.open()
        except Exception as error:
            raise self._unreadable(error) from error
        return self._reader

    def __exit__(self, kind, error, trace) -> None:
        self._reader.close()
        # rosbags raises what its parsers raise (struct, sqlite3, zstd, assert): one meaning here.
        if isinstance(error, Exception) and not isinstance(error, ReplayError):
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ReplayError:
        if self._path.is_dir() and not (self._path / 'metadata.yaml').exists():
            return ReplayError(f'{self._path}: expected a rosbag2 folder, but it has no '
                               'metadata.yaml; was the recording cut off? Try `ros2 bag reindex`')
        what = 'damaged database' if isinstance(error, sqlite3.Error) else type(error).__name__
        return ReplayError(f'{self._path}: the bag cannot be read ({what}: {error}); it may be '
                           'cut off or damaged, try `ros2 bag reindex` or record it again')


def _listed(names: Collection[str]) -> str:
    return ', '.join(names if isinstance(names, tuple) else sorted(names)) or 'none'
