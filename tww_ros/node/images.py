"""sensor_msgs/Image and CompressedImage → RGB uint8 [H, W, 3], or a FrameError.

In: a message and the topic it came on (for the error). Out: an array that may share memory with
the message. 8-bit RGB, BGR and grey and 16-bit grey are read here with numpy, honouring `step`;
Bayer and YUV go through cv_bridge, compressed images through OpenCV, both imported when first
needed: a robot with an rgb8 camera needs neither. It knows nothing of stamps or of the engine.
Depth images are refused: the model sees colours, not metres.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tww_ros.errors import FrameError

# encoding → bytes per pixel, and which channels are red, green, blue
PACKED = {
    'rgb8': (3, (0, 1, 2)), 'bgr8': (3, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)), 'bgra8': (4, (2, 1, 0)),
    'mono8': (1, (0, 0, 0)), '8UC1': (1, (0, 0, 0)),
    'mono16': (2, None),
}
# bytes per pixel of what cv_bridge reads
BRIDGED = {
    'bayer_rggb8': 1, 'bayer_bggr8': 1, 'bayer_gbrg8': 1, 'bayer_grbg8': 1,
    'bayer_rggb16': 2, 'bayer_bggr16': 2, 'bayer_gbrg16': 2, 'bayer_grbg16': 2,
    'rgb16': 6, 'bgr16': 6, 'rgba16': 8, 'bgra16': 8,
    'yuv422': 2, 'uyvy': 2, 'yuv422_yuy2': 2, 'yuyv': 2,
}
DEPTH = ('16UC1', '16SC1', '32FC1', '64FC1')


def image_to_rgb(message: Any, topic: str) -> np.ndarray:
    """sensor_msgs/Image → uint8 [H, W, 3] RGB; FrameError says what is wrong with the message."""
    height, width, encoding = message.height, message.width, message.encoding
    if encoding in DEPTH:
        raise FrameError(f'{topic}: depth images are not watched (encoding {encoding}); give the '
                         'colour topic')
    if encoding not in PACKED and encoding not in BRIDGED:
        raise FrameError(f'{topic}: unknown encoding {encoding!r}; expected one of '
                         f'{", ".join([*PACKED, *BRIDGED])}; set the camera driver to rgb8')
    size = len(message.data)
    if height == 0 or width == 0 or size == 0:
        raise FrameError(f'{topic}: the image is empty ({width}×{height} px, {size} bytes of '
                         'data); check the camera driver')
    pixel_bytes = PACKED[encoding][0] if encoding in PACKED else BRIDGED[encoding]
    if message.step < width * pixel_bytes:
        raise FrameError(f'{topic}: wrong step: a row of {width} px in {encoding} has at least '
                         f'{width * pixel_bytes} bytes, got step {message.step}; check the camera '
                         'driver')
    # The last row may lack its padding.
    needed = (height - 1) * message.step + width * pixel_bytes
    if size < needed:
        raise FrameError(f'{topic}: data too short: {width}×{height} px in {encoding} with step '
                         f'{message.step} need {needed} bytes, got {size}; check the driver')
    if encoding in BRIDGED:
        return _bridged(message, topic)
    rows = np.lib.stride_tricks.as_strided(
        np.frombuffer(message.data, np.uint8), (height, width, pixel_bytes),
        (message.step, pixel_bytes, 1))                                     # [H, W, bytes]
    order = PACKED[encoding][1]
    if encoding == 'mono16':
        grey = rows[:, :, 0 if message.is_bigendian else 1]                 # [H, W], the high byte
        return np.repeat(grey[:, :, None], 3, axis=2)
    if order == (0, 1, 2) and pixel_bytes == 3 and message.step == width * 3:
        return rows
    rgb = np.empty((height, width, 3), np.uint8)
    # Channel by channel: numpy copies a reversed last axis several times slower.
    for target, source in enumerate(order):
        rgb[:, :, target] = rows[:, :, source]
    return rgb


def compressed_to_rgb(message: Any, topic: str) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG, PNG, ...) → uint8 [H, W, 3] RGB; FrameError."""
    data = np.frombuffer(message.data, np.uint8)
    if data.size == 0:
        raise FrameError(f'{topic}: the compressed image is empty; check the camera driver')
    if 'compressedDepth' in message.format or message.format.split(';')[0].strip() in DEPTH:
        raise FrameError(f'{topic}: depth images are not watched (format {message.format!r}); '
                         'give the colour topic')
    cv2 = _import('cv2', topic, 'compressed images need OpenCV')
    # The camera's own orientation tag is ignored: the raw topic of the same camera has none.
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FrameError(f'{topic}: the compressed image cannot be read ({error.err})') from error
    if bgr is None:
        raise FrameError(f'{topic}: {data.size} bytes of format {message.format!r} are no '
                         'readable JPEG or PNG; check the driver, or use image_transport raw')
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _bridged(message: Any, topic: str) -> np.ndarray:
    cv_bridge = _import('cv_bridge', topic, f'encoding {message.encoding} needs cv_bridge')
    try:
        image = cv_bridge.CvBridge().imgmsg_to_cv2(message, desired_encoding='rgb8')
    except Exception as error:  # its own error, cv2's, KeyError or TypeError, by distribution
        raise FrameError(f'{topic}: cv_bridge cannot read encoding {message.encoding} '
                         f'({error!r}); set the camera driver to rgb8') from error
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise FrameError(f'{topic}: cv_bridge made {image.dtype} {list(image.shape)} of encoding '
                         f'{message.encoding}, expected uint8 [H, W, 3]; set the camera driver to '
                         'rgb8')
    return image


def _import(name: str, topic: str, why: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise FrameError(f'{topic}: {why}, which cannot be imported ({error}); install it or set '
                         'the camera driver to rgb8') from error
