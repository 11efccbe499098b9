"""Bags written from videos and read back; their bytes also by the rules of the formats."""

import io
import os
import shutil
import sqlite3
import struct
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from tww_ros.errors import ReplayError
from tww_ros.replay.bag import DEFAULT_START_NS, bag_info, read_bag, write_bag_from_video
from tww_ros.replay.video import read_video

from .conftest import write_video

pytest.importorskip('rosbags')
STEP_NS = 100_000_000


def cdr_image(data):
    """Header and picture of a little-endian CDR sensor_msgs/Image, by the rules of XCDR1."""
    assert data[:2] == b'\x00\x01'
    body, at = memoryview(data)[4:], 0

    def take(form):
        nonlocal at
        size = struct.calcsize(form)
        at += -at % size
        value = struct.unpack_from('<' + form, body, at)[0]
        at += size
        return value

    def text():
        nonlocal at
        length = take('I')
        value = bytes(body[at:at + length - 1]).decode()
        assert body[at + length - 1] == 0
        at += length
        return value

    stamp = take('i') * 10**9 + take('I')
    frame_id, height, width, encoding = text(), take('I'), take('I'), text()
    big, step, size = take('B'), take('I'), take('I')
    pixels = np.frombuffer(body[at:at + size], np.uint8)
    assert at + size == len(body) and big == 0 and step == 3 * width
    return stamp, frame_id, encoding, pixels.reshape(height, width, 3)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_raw_bag_holds_the_video(video, tmp_path, storage):
    info = write_bag_from_video(video, tmp_path / 'bag', storage=storage, frame_id='front_optical',
                                progress=False)
    assert (info.storage, info.messages) == (storage, 25)
    assert (info.start_ns, info.end_ns) == (DEFAULT_START_NS, DEFAULT_START_NS + 24 * STEP_NS)
    assert info.duration_s == pytest.approx(2.4)
    assert [(t.name, t.msgtype, t.messages) for t in info.topics] == [
        ('/image', 'sensor_msgs/msg/Image', 25)]
    assert info.size_bytes > 25 * 64 * 48 * 3

    messages = list(read_bag(tmp_path / 'bag'))
    for index, (message, frame) in enumerate(zip(messages, read_video(video), strict=True)):
        assert message.t_ns == DEFAULT_START_NS + index * STEP_NS
        assert (message.topic, message.msgtype) == ('/image', 'sensor_msgs/msg/Image')
        stamp, frame_id, encoding, pixels = cdr_image(message.data)
        assert (stamp, frame_id, encoding) == (message.t_ns, 'front_optical', 'rgb8')
        np.testing.assert_array_equal(pixels, frame.image)


@pytest.mark.parametrize('compressed, tolerance', [('jpeg', 12), ('png', 0)])
def test_compressed_bag(video, tmp_path, compressed, tolerance):
    from PIL import Image
    from rosbags.typesys import Stores, get_typestore
    store = get_typestore(Stores.ROS2_JAZZY)
    info = write_bag_from_video(video, tmp_path / 'bag', compressed=compressed, topic='/cam/image',
                                start_ns=5 * 10**9, progress=False)
    assert info.topics[0].name == '/cam/image/compressed'
    for message, frame in zip(read_bag(tmp_path / 'bag'), read_video(video), strict=True):
        decoded = store.deserialize_cdr(message.data, 'sensor_msgs/msg/CompressedImage')
        assert decoded.format == f'rgb8; {compressed} compressed bgr8'
        stamp = decoded.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == 5 * 10**9 + frame.stamp_ns
        picture = Image.open(io.BytesIO(decoded.data.tobytes()))
        assert picture.format == compressed.upper()
        difference = np.asarray(picture).astype(int) - frame.image
        assert abs(difference[20:, 20:]).max() <= tolerance


def test_metadata_is_what_rosbag2_writes(video, tmp_path):
    yaml = pytest.importorskip('yaml')
    write_bag_from_video(video, tmp_path / 'bag', progress=False)
    data = yaml.safe_load((tmp_path / 'bag/metadata.yaml').read_text())
    top = data['rosbag2_bagfile_information']
    assert top['version'] == 8 and top['storage_identifier'] == 'mcap'
    assert [(tmp_path / 'bag' / name).is_file() for name in top['relative_file_paths']] == [True]
    topic = top['topics_with_message_count'][0]
    assert topic['message_count'] == top['message_count'] == 25
    assert topic['topic_metadata']['type'] == 'sensor_msgs/msg/Image'
    assert topic['topic_metadata']['serialization_format'] == 'cdr'
    # Published by every ROS 2 distribution from Iron on for this type.
    assert topic['topic_metadata']['type_description_hash'] == (
        'RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47')


def test_sqlite_file_has_rosbag2_s_tables(video, tmp_path):
    write_bag_from_video(video, tmp_path / 'bag', storage='sqlite3', progress=False)
    file = next((tmp_path / 'bag').glob('*.db3'))
    with sqlite3.connect(file) as database:
        topics = database.execute('SELECT id, name, type, serialization_format FROM topics')
        assert [row[1:] for row in topics] == [('/image', 'sensor_msgs/msg/Image', 'cdr')]
        stamps = [row[0] for row in database.execute('SELECT timestamp FROM messages ORDER BY id')]
    database.close()
    assert stamps == [DEFAULT_START_NS + k * STEP_NS for k in range(25)]


def test_thinned_and_cut(video, tmp_path):
    write_bag_from_video(video, tmp_path / 'bag', fps=5, max_seconds=1.0, progress=False)
    times = [message.t_ns - DEFAULT_START_NS for message in read_bag(tmp_path / 'bag')]
    assert times == [k * 2 * STEP_NS for k in range(5)]


def test_single_file_and_second_pass(video, tmp_path):
    write_bag_from_video(video, tmp_path / 'bag', progress=False)
    bag = read_bag(next((tmp_path / 'bag').glob('*.mcap')))
    assert [m.t_ns for m in bag] == [m.t_ns for m in bag]
    assert bag.info.messages == 25 and bag.info.storage == 'mcap'


def test_topics_are_chosen_by_name(tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    store = get_typestore(Stores.ROS2_KILTED)
    text = store.types['std_msgs/msg/String']
    with Writer(tmp_path / 'two', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        a, b = (writer.add_connection(name, 'std_msgs/msg/String', typestore=store)
                for name in ('/a', '/b'))
        for k in range(6):
            data = store.serialize_cdr(text(str(k)), 'std_msgs/msg/String')
            writer.write((a, b)[k % 2], k, data)
    assert [m.topic for m in read_bag(tmp_path / 'two')] == ['/a', '/b'] * 3
    assert [m.t_ns for m in read_bag(tmp_path / 'two', topics=['/b'])] == [1, 3, 5]
    assert list(read_bag(tmp_path / 'two', topics=[])) == []
    with pytest.raises(ReplayError, match=r'expected topics of this bag \(/a, /b\), got /c'):
        read_bag(tmp_path / 'two', topics=['/b', '/c'])


def test_empty_bag(tmp_path):
    from rosbags.rosbag2 import Writer
    with Writer(tmp_path / 'none', version=8):
        pass
    info = bag_info(tmp_path / 'none')
    assert (info.messages, info.start_ns, info.end_ns, info.topics) == (0, 0, 0, ())
    assert list(read_bag(tmp_path / 'none')) == []


def test_reading_does_not_hold_the_bag(tmp_path):
    path = write_video(tmp_path / 'big.mp4', frames=25, size=(480, 640), fps=Fraction(10))
    info = write_bag_from_video(path, tmp_path / 'bag', progress=False)
    assert info.size_bytes > 22_000_000
    bag = read_bag(tmp_path / 'bag')
    tracemalloc.start()
    count = sum(1 for _ in bag)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 25
    assert peak_bytes < info.size_bytes / 2


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.9])
def test_cut_off_bag(video, tmp_path, storage, share):
    write_bag_from_video(video, tmp_path / 'bag', storage=storage, progress=False)
    file = next(f for f in (tmp_path / 'bag').iterdir() if f.suffix != '.yaml')
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(ReplayError, match='cannot be read'):
        list(read_bag(tmp_path / 'bag'))


def test_bag_without_metadata(video, tmp_path):
    write_bag_from_video(video, tmp_path / 'bag', progress=False)
    (tmp_path / 'bag/metadata.yaml').unlink()
    with pytest.raises(ReplayError, match=r'no metadata\.yaml.*reindex'):
        read_bag(tmp_path / 'bag')


@pytest.mark.parametrize('content', ['', 'not: [closed', 'a: 1',
                                     'rosbag2_bagfile_information: {version: 8}'])
def test_bad_metadata(video, tmp_path, content):
    write_bag_from_video(video, tmp_path / 'bag', progress=False)
    (tmp_path / 'bag/metadata.yaml').write_text(content)
    with pytest.raises(ReplayError, match='cannot be read'):
        read_bag(tmp_path / 'bag')


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(ReplayError, match='no such bag'):
        read_bag(tmp_path / 'nothing')
    (tmp_path / 'a.txt').write_text('hello')
    with pytest.raises(ReplayError, match='cannot be read'):
        read_bag(tmp_path / 'a.txt')


def test_damage_in_the_middle_of_reading(video, tmp_path):
    write_bag_from_video(video, tmp_path / 'bag', progress=False)
    file = next((tmp_path / 'bag').glob('*.mcap'))
    bag = read_bag(tmp_path / 'bag')
    data = bytearray(file.read_bytes())
    index = data.index(b'\x05', 4_000)
    data[index:index + 200_000] = b'\xff' * 200_000
    file.write_bytes(data)
    with pytest.raises(ReplayError, match='cannot be read'):
        list(bag)


def test_consumer_s_own_error_is_not_disguised(video, tmp_path):
    write_bag_from_video(video, tmp_path / 'bag', progress=False)
    with pytest.raises(ZeroDivisionError):
        for message in read_bag(tmp_path / 'bag'):
            message.t_ns // 0


def test_existing_output_is_not_touched(video, tmp_path):
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag/precious').write_text('keep')
    with pytest.raises(ReplayError, match='exists already'):
        write_bag_from_video(video, tmp_path / 'bag', progress=False)
    assert (tmp_path / 'bag/precious').read_text() == 'keep'


def test_nothing_is_left_when_writing_breaks_off(video, tmp_path, monkeypatch):
    from tww_ros.replay import bag as module

    def breaks(*args, **kwargs):
        frames = read_video(video)
        yield next(frames)
        raise ReplayError('the video broke off')

    monkeypatch.setattr(module, 'read_video', breaks)
    with pytest.raises(ReplayError, match='broke off'):
        write_bag_from_video(video, tmp_path / 'out/bag', progress=False)
    assert list((tmp_path / 'out').iterdir()) == []


@pytest.mark.parametrize('options, message', [
    ({'storage': 'rosbag1'}, 'mcap, sqlite3'), ({'compressed': 'gif'}, 'jpeg, png'),
    ({'topic': 'image'}, 'like /image'), ({'topic': '/'}, 'like /image')])
def test_unknown_options(video, tmp_path, options, message):
    with pytest.raises(ReplayError, match=message):
        write_bag_from_video(video, tmp_path / 'bag', progress=False, **options)
    assert not (tmp_path / 'bag').exists()


def test_folder_that_cannot_be_written(video, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ReplayError, match='cannot write there'):
        write_bag_from_video(video, tmp_path / 'file/bag', progress=False)


def test_real_video(sample_videos, tmp_path):
    info = write_bag_from_video(sample_videos / 'bikes.mp4', tmp_path / 'bikes', fps=10,
                                compressed='jpeg', progress=False)
    # 25 frames per second thinned to 10: every 2nd or 3rd frame.
    assert info.messages == 100
    steps = np.diff([message.t_ns for message in read_bag(tmp_path / 'bikes')])
    assert set((steps // 1_000_000).tolist()) <= {80, 120}
    shutil.rmtree(tmp_path / 'bikes')
