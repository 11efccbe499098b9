"""Image messages whose encoding is not common: what the robot's own cv_bridge makes of them.

In: sensor_msgs/Image and its topic for the error. Out: RGB uint8 [H, W, 3], or a FrameError. What
`video/encodings.py` reads never comes here, so cv_bridge is imported when a camera first needs it.
An encoding that names no colours (8UC3, 8UC4: what cv_bridge writes for an array of OpenCV when
nobody says otherwise) is taken as OpenCV's, blue first.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from tww_ros.errors import FrameError
from tww_ros.video import encodings

READ_WITHOUT = {*encodings.CHANNELS, *encodings.OPENCV, *encodings.DEPTH}
NAMELESS = {'8UC3': 'COLOR_BGR2RGB', '8UC4': 'COLOR_BGRA2RGB'}


def image_to_rgb(message: Any, topic: str) -> np.ndarray:
    """sensor_msgs/Image → uint8 [H, W, 3] RGB; FrameError says what is wrong with the message."""
    if message.encoding in READ_WITHOUT:
        return encodings.image_to_rgb(message, topic)
    try:
        bridge = _bridge()
    except Exception as error:  # an extension built for another NumPy raises what it likes
        raise FrameError(f'{topic}: unknown encoding {message.encoding!r} needs cv_bridge, which '
                         f'cannot be imported ({error}); install it (`tww doctor` checks it), or '
                         'set the camera driver to rgb8') from error
    try:
        return _read(bridge, message)
    except Exception as error:  # its own error, cv2's, KeyError or TypeError, by distribution
        raise FrameError(f'{topic}: unknown encoding {message.encoding!r}, which cv_bridge cannot '
                         f'read as rgb8 either ({type(error).__name__}: {error}); set the camera '
                         'driver to rgb8') from error


@functools.cache
def _bridge() -> Any:
    from cv_bridge import CvBridge
    return CvBridge()


def _read(bridge: Any, message: Any) -> np.ndarray:
    height, width, step = message.height, message.width, message.step
    dtype, channels = bridge.encoding_to_dtype_with_channels(message.encoding)
    pixel_bytes = channels * np.dtype(dtype).itemsize
    row_bytes = width * pixel_bytes
    data = np.frombuffer(message.data, np.uint8)
    if not row_bytes or step < row_bytes or not 0 < height * step <= data.size:
        raise ValueError(f'{width}×{height} px need a step of at least {row_bytes} and height × '
                         f'step bytes of data, got step {step} and {data.size} bytes')
    # Packed, because older versions of cv_bridge take no notice of the step.
    rows = data[:height * step].reshape(height, step)[:, :row_bytes]          # [H, bytes]
    # Single bytes have no order, and turning them fails there with NumPy 2.
    big = message.is_bigendian if pixel_bytes > channels else 0
    packed = SimpleNamespace(height=height, width=width, encoding=message.encoding, step=row_bytes,
                             is_bigendian=big, data=rows.tobytes())
    if message.encoding in NAMELESS:
        import cv2
        image = bridge.imgmsg_to_cv2(packed)                        # [H, W, channels]
        return cv2.cvtColor(image, getattr(cv2, NAMELESS[message.encoding]))
    image = bridge.imgmsg_to_cv2(packed, desired_encoding='rgb8')
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f'it made {image.dtype} {list(image.shape)} of it, expected uint8 '
                         f'{[height, width, 3]}')
    return image
