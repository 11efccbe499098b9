"""Videos become frames with exact stamps; what is not a video becomes a clear error."""

import shutil
import struct
import wave
from fractions import Fraction

import numpy as np
import pytest

from tww_ros.errors import ReplayError
from tww_ros.replay.video import read_video, video_info

from .conftest import grey_level, write_video


def level(frame):
    return float(frame.image[20:, 20:].mean())


def test_all_frames_in_order_with_stamps_from_start(video):
    frames = list(read_video(video, camera='front', start_ns=7_000))
    assert [frame.stamp_ns for frame in frames] == [7_000 + k * 100_000_000 for k in range(25)]
    assert {frame.camera for frame in frames} == {'front'}
    assert frames[0].image.shape == (48, 64, 3) and frames[0].image.dtype == np.uint8
    for index, frame in enumerate(frames):
        assert abs(level(frame) - grey_level(index)) < 3


def test_colours_are_rgb(video):
    red, green, blue = next(read_video(video)).image[4:12, 4:12].reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize('start_s, end_s, expected', [
    (0.0, None, range(25)), (0.7, None, range(7, 25)), (0.0, 0.5, range(5)),
    (1.05, 1.5, range(11, 15)), (2.4, 9.0, range(24, 25)), (3.0, None, range(0))])
def test_start_and_end(video, start_s, end_s, expected):
    frames = list(read_video(video, start_s=start_s, end_s=end_s))
    assert [frame.stamp_ns for frame in frames] == [k * 100_000_000 for k in expected]
    for index, frame in zip(expected, frames, strict=True):
        assert abs(level(frame) - grey_level(index)) < 3


@pytest.mark.parametrize('fps, expected', [(10, range(25)), (5, range(0, 25, 2)),
                                           (2, range(0, 25, 5)), (60, range(25))])
def test_thinned_out(video, fps, expected):
    stamps = [frame.stamp_ns for frame in read_video(video, fps=fps)]
    assert stamps == [k * 100_000_000 for k in expected]


def test_fractional_rate_does_not_drift(tmp_path):
    path = write_video(tmp_path / 'ntsc.mkv', 25, Fraction(30_000, 1_001))
    stamps = [frame.stamp_ns for frame in read_video(path)]
    for index, stamp in enumerate(stamps):
        # Matroska counts milliseconds.
        assert abs(stamp - Fraction(index * 1_001 * 10**9, 30_000)) <= 1_000_000


def test_variable_rate_keeps_the_file_s_own_times(tmp_path):
    times_ms = [0, 40, 100, 110, 500, 1_730]
    path = write_video(tmp_path / 'vfr.mkv', 6, Fraction(25), stamps=times_ms)
    assert [frame.stamp_ns // 1_000_000 for frame in read_video(path)] == times_ms


def test_sideways_video_comes_out_upright(video, tmp_path):
    turned = tmp_path / 'phone.mp4'
    data = bytearray(video.read_bytes())
    # Track header, version 0: 'tkhd', 4 + 20 + 8 + 8 bytes, then the 3×3 matrix (16.16 fixed).
    matrix = data.index(b'tkhd') + 4 + 4 + 20 + 8 + 8
    assert struct.unpack_from('>9i', data, matrix)[0] == 65_536
    struct.pack_into('>9i', data, matrix, 0, 65_536, 0, -65_536, 0, 0, 48 << 16, 0, 1 << 30)
    turned.write_bytes(data)
    plain, upright = next(read_video(video)).image, next(read_video(turned)).image
    assert upright.shape == (64, 48, 3)
    # The mark says: show it turned by 90° clockwise.
    np.testing.assert_array_equal(upright, np.rot90(plain, -1))
    info = video_info(turned)
    assert (info.width, info.height) == (48, 64)


def test_info(video):
    info = video_info(video)
    assert (info.width, info.height, info.fps, info.frames) == (64, 48, 10.0, 25)
    assert info.codec == 'mpeg4'
    assert info.duration_s == pytest.approx(2.5, abs=0.11)


def test_frame_is_contiguous_and_independent(video):
    first, second = list(read_video(video, end_s=0.2))
    assert first.image.flags['C_CONTIGUOUS']
    assert not np.shares_memory(first.image, second.image)


@pytest.mark.parametrize('name, content, message', [
    ('missing.mp4', None, 'no such video file'),
    ('empty.mp4', b'', 'cannot be opened'),
    ('text.mp4', b'this is not a video\n' * 50, 'cannot be opened'),
])
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (video_info, lambda p: list(read_video(p))):
        with pytest.raises(ReplayError, match=message):
            read(path)


def test_folder_is_refused(tmp_path):
    with pytest.raises(ReplayError, match='folder'):
        video_info(tmp_path)


def test_cut_off_file_is_refused(video, tmp_path):
    path = tmp_path / 'cut.mp4'
    path.write_bytes(video.read_bytes()[:2_000])
    with pytest.raises(ReplayError, match=r'cut\.mp4'):
        list(read_video(path))


def test_damaged_pictures_never_escape_as_another_error(video, tmp_path):
    data = bytearray(video.read_bytes())
    start = data.index(b'mdat')
    for seed in range(5):
        broken = bytearray(data)
        noise = np.random.default_rng(seed).integers(0, 256, 1_500, dtype=np.uint8).tobytes()
        broken[start + 300:start + 300 + len(noise)] = noise
        path = tmp_path / f'noise{seed}.mp4'
        path.write_bytes(broken)
        stamps = []
        try:
            stamps += [frame.stamp_ns for frame in read_video(path)]
        except ReplayError as error:
            assert path.name in str(error)
        assert stamps == sorted(stamps)


def test_sound_without_pictures_is_refused(tmp_path):
    path = tmp_path / 'sound.wav'
    with wave.open(str(path), 'wb') as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8_000)
        sound.writeframes(bytes(16_000))
    with pytest.raises(ReplayError, match='expected a video stream, got audio'):
        video_info(path)


@pytest.mark.parametrize('times', [{'start_s': -1.0}, {'start_s': 2.0, 'end_s': 2.0},
                                   {'start_s': 3.0, 'end_s': 1.0}])
def test_bad_range_is_refused_at_once(video, times):
    with pytest.raises(ReplayError, match='expected 0 ≤ start < end'):
        read_video(video, **times)


def test_path_with_spaces_and_other_letters(video, tmp_path):
    path = tmp_path / 'my video – ü #1%20.mp4'
    shutil.copy(video, path)
    assert len(list(read_video(path))) == 25


@pytest.mark.parametrize('name, frames, size, fps', [
    ('bikes.mp4', 250, (272, 640), 25.0), ('carphone_pristine.mp4', 120, (144, 176), 29.97),
    ('bigbuckbunny.mp4', 132, (720, 1280), 25.0)])
def test_real_videos(sample_videos, name, frames, size, fps):
    info = video_info(sample_videos / name)
    assert (info.height, info.width) == size and info.fps == pytest.approx(fps, abs=0.01)
    stamps = []
    for frame in read_video(sample_videos / name):
        assert frame.image.shape == (*size, 3)
        stamps.append(frame.stamp_ns)
    assert len(stamps) == frames == info.frames
    steps = np.diff(stamps)
    assert abs(steps - 1e9 / info.fps).max() < 2
