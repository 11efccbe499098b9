"""The clock behind the stamps goes back, or the rate changes, while frames are watched."""

import numpy as np
import pytest

from tww_ros.config import WatchConfig
from tww_ros.types import Frame
from tww_ros.video.sampling import FrameSampler
from tww_ros.video.segmentation import FrameIntake, SegmentClosed

MS = 1_000_000
IMAGE = np.zeros((2, 2, 3), np.uint8)


def intake(**options):
    return FrameIntake(WatchConfig(sample_fps=60.0, **options))


def add(target, *stamps, camera='front'):
    """Verdicts, and the epoch after each frame."""
    return [(target.add(Frame(ms * MS, camera, IMAGE)).verdict, target.clock.epoch)
            for ms in stamps]


def test_a_loop_shorter_than_the_tolerated_disorder_is_seen_when_the_clock_tells():
    """0.8 s of video in a loop: by the stamps alone, all of it would be late for ever."""
    alone, told = intake(), intake()
    loop = (0, 200, 400, 600, 800)
    add(alone, *loop)
    assert {verdict for verdict, _ in add(alone, *loop)} == {'rejected'}
    add(told, *loop)
    assert [e.closed_by for e in told.jump(0) if isinstance(e, SegmentClosed)] == ['epoch']
    assert add(told, *loop) == [('watched', 1)] * 5


def test_one_jump_is_one_epoch_whoever_sees_it_first():
    stamps_first, clock_first = intake(), intake()
    for target in (stamps_first, clock_first):
        add(target, 60_000, 61_000)
    assert add(stamps_first, 0, 50) == [('watched', 1)] * 2
    # The clock is known a little later than the frames that it is stamped with.
    assert stamps_first.jump(0) == [] and stamps_first.clock.epoch == 1
    assert clock_first.jump(0) and clock_first.clock.epoch == 1
    # Again without a frame in between: there is nothing that could be mixed.
    assert clock_first.jump(0) == [] and clock_first.clock.epoch == 1
    # One more of the old run was under way.
    assert add(clock_first, 61_500, 0, 1_000) == [('rejected', 1), ('watched', 1), ('watched', 1)]
    assert clock_first.clock.seconds(1_000 * MS) == 1.0


def test_a_camera_with_stamps_of_its_own_goes_on_after_the_jump():
    target = intake()
    add(target, 5_000, 5_100)
    target.jump(0)
    verdicts = add(target, *range(5_200, 7_000, 200))
    assert {epoch for _, epoch in verdicts} == {1}
    # What could be a straggler is left out, for back_jump_s at most.
    assert [verdict for verdict, _ in verdicts].count('rejected') == 5


def test_before_the_first_frame_nothing_jumps():
    target = intake()
    assert target.jump(0) == [] and target.clock.epoch == 0


@pytest.mark.parametrize(('fps', 'kept'), [
    (5.0, [1_100, 1_300, 1_500, 1_700, 1_900]), (1.0, [1_900])])
def test_another_rate_from_now_on(fps, kept):
    """Ten frames a second; the first is due one period after the last one seen, at 900 ms."""
    sampler = FrameSampler(2.0)
    assert [ms for ms in range(0, 1_000, 100) if sampler.accept(ms * MS)] == [0, 500]
    sampler.change(fps)
    assert [ms for ms in range(1_000, 2_000, 100) if sampler.accept(ms * MS)] == kept


def test_the_rate_holds_for_cameras_that_come_later():
    target = FrameIntake(WatchConfig(sample_fps=1.0))
    target.set_sample_fps(10.0)
    assert [verdict for verdict, _ in add(target, 0, 100, 200)] == ['watched'] * 3
