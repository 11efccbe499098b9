"""Which pose belongs to a frame, and what a pose must be."""

from __future__ import annotations

import math
import threading
import time

import pytest
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry

from tww_ros.errors import FrameError
from tww_ros.node.poses import KEPT_POSES, KEPT_S, PoseBuffer, pose_of
from tww_ros.types import NS_PER_S, Pose

LONG_S = 20.0


def ns(t_s: float) -> int:
    return round(t_s * NS_PER_S)


def filled(*stamps_s: float, tolerance_s: float = 0.5) -> PoseBuffer:
    buffer = PoseBuffer(tolerance_s, back_jump_s=1.0)
    for t_s in stamps_s:
        buffer.add(ns(t_s), t_s)
    return buffer


def at_once(buffer: PoseBuffer, t_s: float) -> float | None:
    return buffer.nearest(ns(t_s), 0.0)


def test_the_nearest_within_the_tolerance() -> None:
    stamps = [10.0, 10.25, 10.5, 12.0]
    buffer = filled(*stamps)
    for hundredths in range(900, 1_300, 7):
        t_s = hundredths / 100
        best = min(stamps, key=lambda each: abs(each - t_s))
        expected = best if abs(best - t_s) <= 0.5 else None
        assert at_once(buffer, t_s) == expected
    assert at_once(PoseBuffer(0.5, 1.0), 10.0) is None


def test_disorder_is_put_in_order_and_the_same_stamp_replaces() -> None:
    buffer = filled(10.0, 10.4, 10.2)
    assert [at_once(buffer, t_s) for t_s in (10.05, 10.21, 10.39)] == [10.0, 10.2, 10.4]
    buffer.add(ns(10.2), 'newer')
    assert at_once(buffer, 10.2) == 'newer'


def test_stamps_that_go_back_forget_what_was_before() -> None:
    buffer = filled(10.0, 11.0, 12.0, tolerance_s=60.0)
    buffer.add(ns(2.0), 'again')
    assert at_once(buffer, 11.0) == at_once(buffer, 2.0) == 'again'


def test_the_buffer_is_bounded() -> None:
    buffer = filled(*range(1_000))
    assert at_once(buffer, 999.0) == 999 and at_once(buffer, 999.0 - KEPT_S - 1.0) is None
    dense = filled(*(1 + number * 1e-6 for number in range(KEPT_POSES + 10)))
    assert len(dense._stamps) == len(dense._values) == KEPT_POSES


def test_a_pose_that_comes_later_is_waited_for() -> None:
    buffer = filled(9.7)
    later = threading.Timer(0.05, buffer.add, (ns(10.0), 'its own'))
    later.start()
    assert buffer.nearest(ns(10.0), time.monotonic() + LONG_S) == 'its own'
    later.join()


def test_nobody_waits_for_what_will_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for(*_: object) -> None:
        pytest.fail('waited')

    silent = filled(9.9)
    silent._added_s = -math.inf
    monkeypatch.setattr(silent._changed, 'wait_for', wait_for)
    assert silent.nearest(ns(10.0), time.monotonic() + LONG_S) == 9.9
    # One from the stamp or later is there: no wait, however far the time limit is.
    assert filled(9.9, 10.01).nearest(ns(10.0), time.monotonic() + LONG_S) == 10.01
    # Past its time limit, as in a backlog.
    assert filled(9.9).nearest(ns(10.0), time.monotonic() - 1.0) == 9.9


KINDS = {'odometry': Odometry, 'pose': PoseStamped, 'covariance': PoseWithCovarianceStamped}


def message(kind: str, position: tuple = (1.0, -2.0, 0.5), turn: tuple = (0.0, 0.0, 0.6, 0.8),
            frame_id: str = 'map') -> object:
    made = KINDS[kind]()
    made.header.frame_id = frame_id
    pose = made.pose if kind == 'pose' else made.pose.pose
    pose.position.x, pose.position.y, pose.position.z = position
    (pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w) = turn
    return made


@pytest.mark.parametrize('kind', KINDS)
def test_messages(kind: str) -> None:
    expected = Pose('map', (1.0, -2.0, 0.5), (0.0, 0.0, 0.6, 0.8))
    assert pose_of(message(kind), '/odom') == expected
    assert pose_of(message(kind, turn=(0.0, 0.0, 0.9, 1.2)), '/odom').orientation_xyzw == (
        pytest.approx(expected.orientation_xyzw))


@pytest.mark.parametrize(('changes', 'text'), [
    ({'position': (math.nan, 0.0, 0.0)}, 'finite numbers'),
    ({'turn': (0.0, 0.0, 0.0, 0.0)}, 'a unit quaternion'),
    ({'turn': (0.0, 0.0, math.nan, 1.0)}, 'a unit quaternion'),
    ({'frame_id': ''}, 'no frame_id'),
])
def test_what_is_no_pose(changes: dict, text: str) -> None:
    with pytest.raises(FrameError, match=text) as caught:
        pose_of(message('odometry', **changes), '/odom')
    assert str(caught.value).startswith('/odom: ')
