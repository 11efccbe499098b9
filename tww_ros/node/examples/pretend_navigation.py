"""A stand-in for Nav2, to try a behaviour without a robot: drives straight to each goal.

    python -m tww_ros.node.examples.pretend_navigation [--speed-m-s 1.0]

In: geometry_msgs/PoseStamped on `goal_pose`. Out: nav_msgs/Odometry on `odom`, 20 times a second,
in the frame of the newest goal (`map` before the first). It knows no obstacles.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import rclpy
from geometry_msgs.msg import Pose, PoseStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

PERIOD_S = 0.05


class PretendNavigation(Node):
    """The robot stands at the origin at first."""

    def __init__(self, speed_m_s: float) -> None:
        super().__init__('pretend_navigation')
        self._step_m = speed_m_s * PERIOD_S
        self._frame = 'map'
        self._goal, self._here = Pose(), Pose()
        self._odometry = self.create_publisher(Odometry, 'odom', 10)
        self.create_subscription(PoseStamped, 'goal_pose', self._on_goal, 1)
        self.create_timer(PERIOD_S, self._move)

    def _on_goal(self, message: PoseStamped) -> None:
        if message.pose != self._goal:
            position = message.pose.position
            self.get_logger().info(f'goal {position.x:.2f}, {position.y:.2f}')
        self._frame, self._goal = message.header.frame_id, message.pose

    def _move(self) -> None:
        here, goal = self._here.position, self._goal.position
        left_m = math.hypot(goal.x - here.x, goal.y - here.y)
        share = min(1.0, self._step_m / left_m) if left_m else 1.0
        here.x += (goal.x - here.x) * share
        here.y += (goal.y - here.y) * share
        self._here.orientation = self._goal.orientation
        message = Odometry()
        message.header.frame_id = self._frame
        message.header.stamp = self.get_clock().now().to_msg()
        message.pose.pose = self._here
        self._odometry.publish(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it until it is told to end."""
    argv = list(sys.argv if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--speed-m-s', type=float, default=1.0)
    options = parser.parse_args(remove_ros_args(argv)[1:])
    rclpy.init(args=argv)
    node = PretendNavigation(options.speed_m_s)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
