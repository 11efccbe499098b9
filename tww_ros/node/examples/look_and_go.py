"""A behaviour: look for an object, go to where it was last seen, and make sure that it is there.

    python -m tww_ros.node.examples.look_and_go "red toolbox" [--node /tww] [--places 3]

In: a running tww node whose `pose_topic` tells where the robot is, and a navigation that takes
goals on the topic `goal_pose`, as Nav2 does from RViz (or pretend_navigation.py beside this file).
Out: the robot in front of the object; the exit code is 0 when it was found, 1 when it was not.

    ask "Where did you last see the …?" ─→ evidence with poses ─→ for each place, likeliest first:
    go there ─→ watch "Is the … in view now?" until yes ─→ found

docs/planners.md shows the same with Nav2's BasicNavigator, with feedback and recovery.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Callable, Sequence

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry

from tww_ros.errors import AnswerTimeoutError, NothingSeenError
from tww_ros.node.client import TwwClient
from tww_ros.node.spinning import SpinningNode
from tww_ros.types import Pose, WatchUpdate

# Places closer to each other than this are one.
NEAR_M = 0.5
FOUND, NOT_FOUND = 0, 1


def look_for(client: TwwClient, thing: str, go_to: Callable[[Pose], bool], *, most_places: int = 3,
             look_s: float = 20.0) -> WatchUpdate | None:
    """Go where `thing` was seen, likeliest place first, until it is in view.

    go_to(pose) drives there and tells whether it arrived; look_s: how long to look around there.
    Returns the check that found it, with its evidence; None when it is nowhere.
    """
    try:
        answer = client.ask(f'Where did you last see the {thing}?', session=f'look for {thing}')
    except NothingSeenError:
        return None
    print(f'{thing}: {answer.text}')
    places: list[Pose] = []
    for evidence in answer.evidence:
        if evidence.pose is not None and all(
                distance_m(evidence.pose, place) > NEAR_M for place in places):
            places.append(evidence.pose)
    for place in places[:most_places]:
        x, y, _ = place.position_m
        print(f'going to {x:.2f}, {y:.2f} in {place.frame_id}', flush=True)
        if not go_to(place):
            continue
        try:
            return client.watch(f'Is the {thing} in view now?', timeout_s=look_s).result()
        except AnswerTimeoutError:
            print('it is not here', flush=True)
    return None


def distance_m(one: Pose, other: Pose) -> float:
    """Between two positions of the same frame; infinite when the frames differ."""
    if one.frame_id != other.frame_id:
        return math.inf
    return math.dist(one.position_m, other.position_m)


class TopicNavigator:
    """Goals as RViz sends them to Nav2: a PoseStamped on `goal_pose`. `odom` tells of arrival."""

    def __init__(self) -> None:
        self._spinning = SpinningNode('look_and_go')
        self._goal = self._spinning.node.create_publisher(PoseStamped, 'goal_pose', 1)
        self._here: tuple[float, float] | None = None
        self._moved = threading.Condition()
        self._spinning.node.create_subscription(Odometry, 'odom', self._on_odometry, 10)
        self._spinning.start()

    def go_to(self, pose: Pose, timeout_s: float = 120.0) -> bool:
        """Drive there; False when the robot does not arrive in time."""
        goal = PoseStamped()
        # Stamp 0: wherever the frame is when the goal is reached, not when it was seen.
        goal.header.frame_id = pose.frame_id
        position, orientation = goal.pose.position, goal.pose.orientation
        position.x, position.y, position.z = pose.position_m
        orientation.x, orientation.y, orientation.z, orientation.w = pose.orientation_xyzw
        with self._moved:
            # Once a second, because the first one may be sent before the navigation was found.
            for _ in range(math.ceil(timeout_s)):
                self._goal.publish(goal)
                if self._moved.wait_for(lambda: self._at(pose), 1.0):
                    return True
        return False

    def close(self) -> None:
        """Leave ROS."""
        self._spinning.close()

    def _at(self, pose: Pose) -> bool:
        return self._here is not None and math.dist(self._here, pose.position_m[:2]) < NEAR_M / 2

    def _on_odometry(self, message: Odometry) -> None:
        position = message.pose.pose.position
        with self._moved:
            self._here = position.x, position.y
            self._moved.notify_all()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('thing', help='what to look for: "red toolbox"')
    parser.add_argument('--node', default='/tww', help='full name of the node to ask')
    parser.add_argument('--places', type=int, default=3, help='go to so many places at most')
    parser.add_argument('--look-s', type=float, default=20.0, help='look so long at each')
    options = parser.parse_args(argv)
    navigator = TopicNavigator()
    try:
        with TwwClient(options.node) as client:
            client.wait_until_ready()
            found = look_for(client, options.thing, navigator.go_to, most_places=options.places,
                             look_s=options.look_s)
    finally:
        navigator.close()
    print('not found' if found is None else f'found it, with probability {found.probability:.2f}')
    return NOT_FOUND if found is None else FOUND


if __name__ == '__main__':
    sys.exit(main())
