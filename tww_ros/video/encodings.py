"""Image messages → RGB uint8 [H, W, 3], without ROS.

In: any object with the fields of sensor_msgs/Image or CompressedImage (`rosbags` makes such from a
bag's bytes), and its topic for the error. Out: an array that may share memory with the message, or
a FrameError. What numpy can regroup is not copied twice; Bayer, YUV and compressed pictures go
through OpenCV, imported when first needed. Depth images are refused: the model sees colours, not
metres.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tww_ros.errors import FrameError

# encoding → channels, and which of them are red, green, blue
CHANNELS = {
    'rgb8': (3, (0, 1, 2)), 'bgr8': (3, (2, 1, 0)), 'rgba8': (4, (0, 1, 2)),
    'bgra8': (4, (2, 1, 0)), 'mono8': (1, (0, 0, 0)), '8UC1': (1, (0, 0, 0)),
    'rgb16': (3, (0, 1, 2)), 'bgr16': (3, (2, 1, 0)), 'rgba16': (4, (0, 1, 2)),
    'bgra16': (4, (2, 1, 0)), 'mono16': (1, (0, 0, 0)),
}
# encoding → OpenCV's name: its Bayer names begin one row and one column further.
OPENCV = {
    'bayer_rggb8': 'BayerBG2RGB', 'bayer_bggr8': 'BayerRG2RGB', 'bayer_gbrg8': 'BayerGR2RGB',
    'bayer_grbg8': 'BayerGB2RGB', 'bayer_rggb16': 'BayerBG2RGB', 'bayer_bggr16': 'BayerRG2RGB',
    'bayer_gbrg16': 'BayerGR2RGB', 'bayer_grbg16': 'BayerGB2RGB',
    'yuv422': 'YUV2RGB_UYVY', 'uyvy': 'YUV2RGB_UYVY', 'yuv422_yuy2': 'YUV2RGB_YUY2',
    'yuyv': 'YUV2RGB_YUY2',
}
DEPTH = ('16UC1', '16SC1', '32FC1', '64FC1')


def image_to_rgb(message: Any, topic: str) -> np.ndarray:
    """sensor_msgs/Image → uint8 [H, W, 3] RGB; FrameError says what is wrong with the message."""
    height, width, encoding, step = message.height, message.width, message.encoding, message.step
    if encoding in DEPTH:
        raise FrameError(f'{topic}: depth images are not watched (encoding {encoding}); give the '
                         'colour topic')
    if encoding not in CHANNELS and encoding not in OPENCV:
        raise FrameError(f'{topic}: unknown encoding {encoding!r}; expected one of '
                         f'{", ".join([*CHANNELS, *OPENCV])}; set the camera driver to rgb8')
    two_bytes = encoding.endswith('16')
    channels = (CHANNELS[encoding][0] if encoding in CHANNELS
                else 2 if OPENCV[encoding].startswith('YUV') else 1)
    row_bytes = width * channels * (2 if two_bytes else 1)
    data = np.frombuffer(message.data, np.uint8)
    if height == 0 or width == 0 or data.size == 0:
        raise FrameError(f'{topic}: the image is empty ({width}×{height} px, {data.size} bytes of '
                         'data); check the camera driver')
    # The last row may lack its padding.
    needed = (height - 1) * step + row_bytes
    if step < row_bytes or data.size < needed:
        raise FrameError(f'{topic}: {width}×{height} px in {encoding} need a step of at least '
                         f'{row_bytes} and {needed} bytes of data, got step {step} and '
                         f'{data.size} bytes; check the camera driver')
    values = np.lib.stride_tricks.as_strided(data, (height, row_bytes), (step, 1), writeable=False)
    if two_bytes:
        values = values[:, (0 if message.is_bigendian else 1)::2]          # the high bytes
    pixels = values.reshape(height, width, channels)                    # [H, W, channels]
    if encoding in OPENCV:
        return _convert(np.ascontiguousarray(pixels), OPENCV[encoding], topic)
    order = CHANNELS[encoding][1]
    if order == (0, 1, 2) and channels == 3:
        return pixels
    # Channel by channel: numpy copies a reversed last axis several times slower.
    rgb = np.empty((height, width, 3), np.uint8)
    for target, source in enumerate(order):
        rgb[:, :, target] = pixels[:, :, source]
    return rgb


def compressed_to_rgb(message: Any, topic: str) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG, PNG, …) → uint8 [H, W, 3] RGB; FrameError."""
    data = np.frombuffer(message.data, np.uint8)
    if data.size == 0:
        raise FrameError(f'{topic}: the compressed image is empty; check the camera driver')
    if 'compressedDepth' in message.format or message.format.split(';')[0].strip() in DEPTH:
        raise FrameError(f'{topic}: depth images are not watched (format {message.format!r}); '
                         'give the colour topic')
    cv2 = _opencv(topic)
    # The camera's own orientation tag is ignored: the raw topic of the same camera has none.
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FrameError(f'{topic}: the compressed image cannot be read ({error.err}); check the '
                         'driver') from error
    if bgr is None:
        raise FrameError(f'{topic}: {data.size} bytes of format {message.format!r} are no '
                         'readable JPEG or PNG; check the driver, or record the raw topic')
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _convert(pixels: np.ndarray, code: str, topic: str) -> np.ndarray:
    cv2 = _opencv(topic)
    try:
        return cv2.cvtColor(pixels, getattr(cv2, f'COLOR_{code}'))
    except cv2.error as error:
        height, width = pixels.shape[:2]
        raise FrameError(f'{topic}: OpenCV cannot read {width}×{height} px as {code} '
                         f'({error.err}); set the camera driver to rgb8') from error


def _opencv(topic: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise FrameError(f'{topic}: Bayer, YUV and compressed images need OpenCV, which cannot be '
                         f'imported ({error}); install it, or use rgb8') from error
    return cv2
