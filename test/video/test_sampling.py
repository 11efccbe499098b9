"""The sampler keeps the right frames in spite of jitter, gaps and float rates."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros.errors import ConfigError
from tww_ros.video.sampling import FrameSampler

MS = 1_000_000


def kept(stamps, sample_fps):
    sampler = FrameSampler(sample_fps)
    return [index for index, stamp in enumerate(stamps) if sampler.accept(int(stamp))]


@pytest.mark.parametrize('camera_fps, sample_fps, step', [
    (10, 10, 1), (10, 2, 5), (30, 30, 1), (30, 2, 15), (30, 10, 3), (29.97, 29.97, 1),
    (60, 0.5, 120), (2, 10, 1), (1, 60, 1), (10, 0.05, 200)])
def test_regular_camera(camera_fps, sample_fps, step):
    stamps = [round(k * 1e9 / camera_fps) + 1_700_000_000_000_000_000 for k in range(2_000)]
    assert kept(stamps, sample_fps) == list(range(0, 2_000, step))


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('sample_fps, step', [(10, 1), (2, 5)])
def test_jitter_of_a_fifth_of_the_interval_changes_nothing(seed, sample_fps, step):
    jitter = np.random.default_rng(seed).uniform(-20, 20, 2_000)
    stamps = [round((100 * k + j) * MS) for k, j in enumerate(jitter)]
    assert kept(stamps, sample_fps) == list(range(0, 2_000, step))


@pytest.mark.parametrize('seed', range(5))
def test_jitter_of_a_quarter_interval_loses_next_to_nothing(seed):
    jitter = np.random.default_rng(seed).uniform(-25, 25, 2_000)
    stamps = [round((100 * k + j) * MS) for k, j in enumerate(jitter)]
    assert len(kept(stamps, 10)) >= 0.98 * 2_000
    assert abs(len(kept(stamps, 2)) - 400) <= 1


def test_camera_slightly_slower_than_the_rate_loses_nothing():
    stamps = [k * 101 * MS for k in range(3_000)]
    assert kept(stamps, 10) == list(range(3_000))


def test_no_drift_over_ten_hours():
    stamps = [round(k * 1e9 / 30) for k in range(10 * 3_600 * 30)]
    chosen = [stamps[index] for index in kept(stamps, 2)]
    assert len(chosen) == 10 * 3_600 * 2
    offsets = [abs(stamp - k * 500 * MS) for k, stamp in enumerate(chosen)]
    assert max(offsets) <= 1                                   # rounding of the stamps themselves


def test_long_gap_is_followed_by_the_next_due_frame():
    stamps = [0, 100, 200, 300, 400, 500, 10_120, 10_220, 10_320, 10_420, 10_480, 10_520]
    assert kept([s * MS for s in stamps], 2) == [0, 5, 6, 10]


def test_stamps_that_do_not_advance_are_never_accepted():
    sampler = FrameSampler(60.0)
    assert sampler.accept(1_000 * MS)
    assert not sampler.accept(1_000 * MS)
    assert not sampler.accept(0)
    assert sampler.accept(2_000 * MS)


def test_reset_starts_a_new_grid():
    sampler = FrameSampler(1.0)
    assert sampler.accept(5_000 * MS)
    assert not sampler.accept(5_300 * MS)
    sampler.reset()
    assert sampler.accept(300 * MS)
    assert not sampler.accept(700 * MS)
    assert sampler.accept(1_300 * MS)


@pytest.mark.parametrize('fps', [0.0, -1.0, math.nan])
def test_bad_rate(fps):
    with pytest.raises(ConfigError, match='sample_fps'):
        FrameSampler(fps)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 3_000 * MS), min_size=1, max_size=200), st.floats(0.05, 60.0),
       st.integers(0, 2**61))
def test_rate_is_bounded_for_any_stamps(intervals, sample_fps, start):
    stamps = [start]
    for interval in intervals:
        stamps.append(stamps[-1] + interval)
    chosen = kept(stamps, sample_fps)
    assert chosen[0] == 0
    # One frame per grid slot: the first at the first stamp, the last half a period ahead.
    slots = (stamps[-1] - stamps[0]) / 1e9 * sample_fps + 0.5
    assert len(chosen) <= math.floor(slots + 1e-6) + 1
    # Wherever the camera is slower than the rate, no two frames in a row are skipped.
    slow = [interval > 2e9 / sample_fps for interval in intervals]
    assert all(index + 1 in set(chosen) for index, wide in enumerate(slow) if wide)
