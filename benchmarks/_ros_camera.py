"""A camera driver as a process of its own: raw rgb8 images at a rate, with sensor-data QoS.

    python _ros_camera.py TOPIC PICTURES.npy FPS SECONDS

In: pictures, uint8 [n, H, W, 3]. Out: images whose header stamp is the time of the publish call;
on stdout a line when it begins, which it does when somebody has subscribed, and at its end one
line of JSON: {"stamps_ns": [...]}, all that was published. A moment that has been missed is left
out, as a sensor does, and not made up for. It knows nothing of who listens.
"""

from __future__ import annotations

import json
import sys
import time
from array import array

import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from tww_ros.types import NS_PER_S

DISCOVERY_S = 30.0
# From the first match until all know of it; and from the last image until it has arrived.
SETTLE_S = 1.0


def main(topic: str, file: str, fps: float, seconds: float) -> int:
    """Publish; the exit code is 1 when nobody subscribed."""
    messages = [image_message(picture) for picture in np.load(file)]
    rclpy.init(args=[])
    node = rclpy.create_node('bench_camera' + topic.replace('/', '_'), enable_rosout=False)
    publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)
    end_s = time.monotonic() + DISCOVERY_S
    while not publisher.get_subscription_count():
        if time.monotonic() > end_s:
            print(f'{topic}: nobody subscribed within {DISCOVERY_S:g} s', file=sys.stderr)
            return 1
        time.sleep(0.01)
    time.sleep(SETTLE_S)
    print('publishing', flush=True)
    stamps_ns: list[int] = []
    due_s = time.monotonic()
    end_s = due_s + seconds
    while due_s < end_s:
        time.sleep(max(0.0, due_s - time.monotonic()))
        message = messages[len(stamps_ns) % len(messages)]
        stamp_ns = time.time_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, NS_PER_S)
        publisher.publish(message)
        stamps_ns.append(stamp_ns)
        late = max(0.0, time.monotonic() - due_s) * fps
        due_s += (int(late) + 1) / fps
    time.sleep(SETTLE_S)
    node.destroy_node()
    rclpy.shutdown()
    print(json.dumps({'stamps_ns': stamps_ns}), flush=True)
    return 0


def image_message(picture: np.ndarray) -> Image:
    """An rgb8 message without a stamp; picture: uint8 [H, W, 3]."""
    height, width, _ = picture.shape
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    message.data = array('B', picture.tobytes())
    return message


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
