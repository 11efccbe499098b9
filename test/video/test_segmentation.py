"""Segments, patches and epochs: examples, then properties over any stream of frames."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros.config import WatchConfig
from tww_ros.types import NS_PER_S, Frame, LateFrame
from tww_ros.video.segmentation import (
    EpochClock,
    FrameIntake,
    Patch,
    PatchReady,
    SegmentClosed,
    Segmenter,
)

MS = 1_000_000
SMALL = np.zeros((2, 2, 3), np.uint8)
WIDE = np.zeros((2, 4, 3), np.uint8)
HALF = np.array([[[0] * 3, [250] * 3]] * 2, np.uint8)                         # [2, 2, 3]


def frame(ms, camera='front', image=SMALL):
    return Frame(ms * MS, camera, image)


def told(events):
    """Events as plain data: ('patch', index, [ms, …]) or ('closed', index, why)."""
    return [('patch', e.segment_key.index, [f.stamp_ns // MS for f in e.patch.frames])
            if isinstance(e, PatchReady) else ('closed', e.segment_key.index, e.closed_by)
            for e in events]


def feed(segmenter, stamps):
    return [event for ms in stamps for event in segmenter.add(frame(ms))]


def test_segment_is_closed_before_the_frame_that_reaches_its_span():
    segmenter = Segmenter('front', 2.0)
    assert told(feed(segmenter, range(0, 4_500, 500))) == [
        ('patch', 0, [0, 500]), ('patch', 0, [1_000, 1_500]), ('closed', 0, 'time'),
        ('patch', 1, [2_000, 2_500]), ('patch', 1, [3_000, 3_500]), ('closed', 1, 'time')]
    assert segmenter.open.key.index == 2
    assert segmenter.open.start_ns == segmenter.open.end_ns == 4_000 * MS


def test_question_flushes_the_odd_frame_and_the_next_frame_opens_a_segment():
    segmenter = Segmenter('front', 10.0)
    events = feed(segmenter, [0, 500, 1_000])
    events += segmenter.close('question')
    assert segmenter.open is None
    assert segmenter.close('question') == []
    events += feed(segmenter, [1_500, 2_000])
    assert told(events) == [('patch', 0, [0, 500]), ('patch', 0, [1_000]),
                            ('closed', 0, 'question'), ('patch', 1, [1_500, 2_000])]


def test_gap_resolution_and_epoch_close():
    segmenter = Segmenter('front', 2.0)
    events = feed(segmenter, [0, 60_000])
    events += segmenter.add(frame(60_500, image=WIDE))
    events += segmenter.add(frame(100, image=WIDE), epoch=1)
    assert told(events) == [('patch', 0, [0]), ('closed', 0, 'time'), ('patch', 1, [60_000]),
                            ('closed', 1, 'resolution'), ('patch', 2, [60_500]),
                            ('closed', 2, 'epoch')]
    assert segmenter.open.key == ('front', 1, 3)


def test_patch_stamp_is_the_stock_timestamp():
    assert Patch((frame(1_000), frame(1_500))).stamp_ns == 1_250 * MS
    assert Patch((frame(1_000),)).stamp_ns == 1_000 * MS
    assert Patch((frame(0), frame(7), frame(40))).stamp_ns == 20 * MS


def test_unknown_reason_is_refused():
    with pytest.raises(ValueError, match='boredom'):
        Segmenter('front', 1.0).close('boredom')


def test_order_within_back_jump_is_late_and_beyond_is_a_new_epoch():
    clock = EpochClock(1.0)
    assert clock.t0_ns is None and clock.seconds(5) == 0.0
    verdicts = [clock.observe('front', ms * MS) for ms in
                (5_000, 6_000, 6_000, 5_000, 6_500, 5_499)]
    assert verdicts == ['in_order', 'in_order', 'late', 'late', 'in_order', 'new_epoch']
    assert (clock.epoch, clock.t0_ns) == (1, 5_499 * MS)
    assert clock.seconds(7_999 * MS) == 2.5
    assert clock.seconds(5_000 * MS) == 0.0


def test_cameras_with_different_delays_do_not_disturb_each_other():
    clock = EpochClock(0.5)
    assert clock.observe('fast', 10_000 * MS) == 'in_order'
    assert clock.observe('slow', 7_000 * MS) == 'in_order'
    assert clock.observe('fast', 10_100 * MS) == 'in_order'
    assert clock.observe('slow', 7_100 * MS) == 'in_order'
    assert clock.epoch == 0


def test_looping_bag_with_two_cameras_starts_one_epoch():
    clock = EpochClock(1.0)
    for ms in range(0, 60_000, 100):
        clock.observe('a', ms * MS)
        clock.observe('b', (ms + 5) * MS)
    assert clock.observe('a', 0) == 'new_epoch'
    # b's last two frames of the first round arrive after a's jump.
    assert clock.observe('b', 60_005 * MS) == 'late'
    assert clock.observe('b', 60_105 * MS) == 'late'
    assert clock.observe('b', 5 * MS) == 'in_order'
    assert clock.observe('a', 100 * MS) == 'in_order'
    assert clock.epoch == 1 and clock.t0_ns == 0


def test_camera_that_stays_in_the_old_time_is_heard_again():
    clock = EpochClock(1.0)
    for ms in range(0, 10_000, 100):
        clock.observe('a', ms * MS)
        clock.observe('b', ms * MS)
    assert clock.observe('a', 0) == 'new_epoch'
    verdicts = [clock.observe('b', ms * MS) for ms in range(10_000, 12_000, 100)]
    assert 'in_order' in verdicts and 'new_epoch' not in verdicts
    assert verdicts[:5] == ['late'] * 5
    assert verdicts[-1] == 'in_order'


def test_intake_closes_every_camera_on_a_new_epoch_and_restarts_the_sampler():
    intake = FrameIntake(WatchConfig(sample_fps=2.0, segment_s=10.0))
    verdicts = []
    for ms, camera in [(5_000, 'a'), (5_010, 'b'), (5_100, 'a'), (5_500, 'a'), (5_510, 'b'),
                       (6_000, 'a')]:
        verdicts.append(intake.add(frame(ms, camera)).verdict)
    assert verdicts == ['watched', 'watched', 'skipped', 'watched', 'watched', 'watched']
    assert intake.add(frame(5_900, 'a')) == ('rejected', [])
    result = intake.add(frame(20, 'a'))
    assert result.verdict == 'watched'
    assert [(type(e), e.segment_key.camera) for e in result.events] == [
        (PatchReady, 'a'), (SegmentClosed, 'a'), (SegmentClosed, 'b')]
    assert {e.closed_by for e in result.events if isinstance(e, SegmentClosed)} == {'epoch'}
    assert intake.segmenters['a'].open.key.epoch == 1
    assert intake.add(frame(25, 'b')).verdict == 'watched'
    assert [e.segment_key.camera for e in intake.close('flush', 'b')] == ['b', 'b']
    assert [e.segment_key.camera for e in intake.close('flush')] == ['a', 'a']


steps = st.tuples(st.sampled_from(['a', 'b', 'c']),
                  st.integers(-3_000, 3_000),                              # step of the stamp, ms
                  st.sampled_from([SMALL, SMALL, HALF, WIDE]),
                  st.sampled_from(['', '', '', '', 'question', 'idle', 'flush']))


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=120), st.floats(0.1, 5.0), st.integers(1, 3),
       st.sampled_from([0.5, 2.0, 60.0]), st.sampled_from(['time', 'scene']))
def test_every_watched_frame_is_in_one_patch_of_one_segment(moves, segment_s, patch_frames, fps,
                                                            segment_by):
    config = WatchConfig(sample_fps=fps, segment_s=segment_s, segment_by=segment_by,
                         segment_min_s=segment_s / 2)
    intake = FrameIntake(config, patch_frames)
    now = {'a': 10**7, 'b': 10**7, 'c': 10**7}
    sent, events = [], []
    for camera, step, image, closing in moves:
        now[camera] = max(0, now[camera] + step)
        item = frame(now[camera], camera, image)
        result = intake.add(item)
        if result.verdict == 'watched':
            sent.append((item, intake.clock.epoch))
        events += result.events
        if closing:
            events += intake.close(closing)
    events += intake.close('flush')

    segments, closed, open_of = {}, {}, {}
    for event in events:
        key = event.segment_key
        assert key not in closed, 'nothing may come after the end of a segment'
        if isinstance(event, PatchReady):
            assert open_of.setdefault(key.camera, key) == key, 'one open segment per camera'
            segments.setdefault(key, []).append(event.patch)
        else:
            closed[key] = event.closed_by
            assert open_of.pop(key.camera) == key
    assert set(segments) == set(closed)

    assert segment_by == 'scene' or 'scene' not in closed.values()
    for key, patches in segments.items():
        frames = [f for patch in patches for f in patch.frames]
        stamps = [f.stamp_ns for f in frames]
        assert all(before < after for before, after in itertools.pairwise(stamps))
        assert stamps[-1] - stamps[0] < round(segment_s * NS_PER_S)
        assert {f.camera for f in frames} == {key.camera}
        assert len({f.image.shape for f in frames}) == 1
        assert all(len(patch.frames) == patch_frames for patch in patches[:-1])
        assert 1 <= len(patches[-1].frames) <= patch_frames
    for camera in now:
        mine = [(f, key.epoch) for key, patches in segments.items() if key.camera == camera
                for patch in patches for f in patch.frames]
        expected = [(f, epoch) for f, epoch in sent if f.camera == camera]
        assert [(id(f), e) for f, e in mine] == [(id(f), e) for f, e in expected]
        indices = [key.index for key in segments if key.camera == camera]
        assert indices == list(range(len(indices)))


def test_a_late_frame_is_read_only_when_it_is_watched():
    stamps = [*range(1_000, 4_000, 100), *range(0, 1_000, 100)]             # back to 0: an epoch
    read = []

    def late(ms):
        def make():
            read.append(ms)
            return None if ms == 2_000 else frame(ms)

        return LateFrame(ms * MS, 'front', make)

    config = WatchConfig(sample_fps=2.0, segment_s=2.0)
    at_once, at_need = FrameIntake(config), FrameIntake(config)
    expected = [at_once.add(frame(ms)) for ms in stamps]
    got = [at_need.add(late(ms)) for ms in stamps]
    assert [ms for ms, taken in zip(stamps, expected, strict=True)
            if taken.verdict == 'watched'] == read
    assert read == [1_000, 1_500, 2_000, 2_500, 3_000, 3_500, 0, 500]
    # One that cannot be read is rejected; all others fare as if their images had been there.
    verdicts = [taken.verdict for taken in expected]
    verdicts[stamps.index(2_000)] = 'rejected'
    assert [taken.verdict for taken in got] == verdicts


def test_a_late_frame_without_an_image_still_begins_its_epoch():
    intake = FrameIntake(WatchConfig(sample_fps=2.0, segment_s=60.0))
    intake.add(frame(5_000))
    taken = intake.add(LateFrame(0, 'front', lambda: None))
    assert taken.verdict == 'rejected'
    assert told(taken.events) == [('patch', 0, [5_000]), ('closed', 0, 'epoch')]
