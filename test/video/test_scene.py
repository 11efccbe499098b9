"""Scene cuts: the thumbnail and its distance by hand, then what is cut and what is not."""

import itertools

import numpy as np
import pytest

from tww_ros.config import WatchConfig
from tww_ros.errors import ConfigError
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.scene import SceneCut, difference, thumbnail
from tww_ros.video.segmentation import FrameIntake, SegmentClosed

_PATCHES = np.random.default_rng(0).integers(80, 170, (12, 16, 3))
ROOM = _PATCHES.repeat(20, 0).repeat(20, 1).astype(np.uint8)                 # [240, 320, 3]


def seen(second, *, person=None, light=1.0, shade=40):
    """A noisy picture of a room; person: the column in px where somebody stands."""
    picture = ROOM * light + np.random.default_rng(second).normal(0, 3, ROOM.shape)
    if person is not None:
        picture[60:220, person:person + 45] = shade
    return np.clip(picture, 0, 255).astype(np.uint8)


def cuts(pictures, **settings):
    """(second, why) of every end of a segment; one picture a second."""
    intake = FrameIntake(WatchConfig(**{'segment_by': 'scene', 'segment_s': 60.0,
                                        'sample_fps': 1.0, **settings}))
    found = []
    for second, picture in enumerate(pictures):
        for event in intake.add(Frame(second * NS_PER_S, 'front', picture)).events:
            if isinstance(event, SegmentClosed):
                found.append((second, event.closed_by))
    return found


def test_thumbnail_is_the_mean_of_grey_blocks():
    picture = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    expected = grey.reshape(16, 4, 16, 6).mean((1, 3))
    assert thumbnail(picture).shape == (16, 16)
    assert abs(thumbnail(picture) - expected).max() <= 1.5


@pytest.mark.parametrize('size', [(1, 1), (3, 900), (1080, 1920), (480, 640)])
def test_thumbnail_of_any_size(size):
    picture = np.full((*size, 3), 77, np.uint8)
    assert (thumbnail(picture) == 77).all()


def test_difference_by_hand():
    one = np.zeros((16, 16), np.float32)
    other = one.copy()
    other[:4] = 8.0                                                # a quarter, by 8 levels
    assert difference(one, other) == difference(other, one) == 4.0
    assert difference(one, one + 30) == 0.0                        # the light


def test_an_idle_camera_makes_long_segments_and_an_event_cuts():
    pictures = [seen(s, person=150 if 20 <= s < 30 else None) for s in range(100)]
    assert cuts(pictures) == [(20, 'scene'), (30, 'scene'), (90, 'time')]


def test_noise_and_a_lamp_do_not_cut():
    assert cuts([seen(s, light=1.0 if s < 25 else 0.9) for s in range(50)]) == []


def test_a_busy_camera_gets_used_to_it_but_not_to_more():
    def street(second):
        return seen(second, person=(second * 67) % 270)
    usual = [street(s) for s in range(90)]
    after = [end for end in cuts(usual) if end[0] > 30]
    assert [why for _, why in after] in ([], ['time'])
    crash = [picture.copy() for picture in usual]
    for picture in crash[80:]:
        picture[:, :160] = 0
    assert (80, 'scene') in cuts(crash)


def test_no_segment_is_shorter_than_the_minimum():
    flicker = [seen(s, person=150 if s % 2 else None) for s in range(12)]
    starts = [0, *(second for second, _ in cuts(flicker, segment_min_s=3.0))]
    assert all(after - before >= 3 for before, after in itertools.pairwise(starts))
    assert (1, 'scene') in cuts(flicker, segment_min_s=0.0)


def test_by_time_looks_at_no_picture():
    pictures = [seen(s, person=150 if s % 5 else None) for s in range(30)]
    assert cuts(pictures, segment_by='time', segment_s=10.0) == [(10, 'time'), (20, 'time')]


def test_the_same_frames_give_the_same_cuts():
    pictures = [seen(s, person=s * 5 if s % 7 < 3 else None) for s in range(40)]
    assert cuts(pictures) == cuts(pictures) != []


def test_each_camera_is_compared_with_itself():
    intake = FrameIntake(WatchConfig(segment_by='scene', segment_s=60.0, sample_fps=1.0))
    events = []
    for second in range(20):
        for camera, person in (('empty', None), ('full', 100)):
            picture = seen(second, person=person)
            events += intake.add(Frame(second * NS_PER_S, camera, picture)).events
    assert not [event for event in events if isinstance(event, SegmentClosed)]


def test_a_segment_begins_with_the_picture_that_cut():
    cut = SceneCut()
    assert not cut.sees(seen(0))
    cut.begin()
    assert not cut.sees(seen(1))
    assert cut.sees(seen(2, person=150))
    cut.begin()
    assert not cut.sees(seen(3, person=150))
    assert cut.sees(seen(4))


def test_the_shortest_above_the_longest_is_refused():
    with pytest.raises(ConfigError, match=r'segment_min_s: expected at most segment_s \(2\)'):
        WatchConfig(segment_by='scene', segment_s=2.0, segment_min_s=3.0)
    assert WatchConfig(segment_s=0.5).segment_min_s == 2.0
