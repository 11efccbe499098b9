"""Real ROS messages, as they come from the wire → RGB arrays, and what is malformed.

Every encoding by itself: test/video/test_encodings.py.
"""

import array
import re

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from tww_ros.errors import FrameError
from tww_ros.video.encodings import compressed_to_rgb, image_to_rgb

H, W = 6, 4
RGB = np.random.default_rng(7).integers(0, 256, (H, W, 3), dtype=np.uint8)


def message(encoding: str, pixels: np.ndarray, padding: int = 0, **changes: object) -> Image:
    """pixels: uint8 [H, W, bytes per pixel]; each row is followed by `padding` bytes of 0xEE."""
    rows = pixels.reshape(pixels.shape[0], -1)
    rows = np.hstack([rows, np.full((rows.shape[0], padding), 0xEE, np.uint8)])
    made = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding,
                 step=rows.shape[1], data=array.array('B', rows.tobytes()))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def alpha(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.full((H, W), 9, np.uint8)])


GREY = RGB[:, :, :1]
CASES = {
    'rgb8': (RGB, RGB),
    'bgr8': (RGB[:, :, ::-1], RGB),
    'rgba8': (alpha(RGB), RGB),
    'bgra8': (alpha(RGB[:, :, ::-1]), RGB),
    'mono8': (GREY, np.repeat(GREY, 3, axis=2)),
    '8UC1': (GREY, np.repeat(GREY, 3, axis=2)),
}


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', CASES)
def test_encoding(encoding: str, padding: int) -> None:
    stored, expected = CASES[encoding]
    made = deserialize_message(serialize_message(message(encoding, stored, padding)), Image)
    got = image_to_rgb(made, 'image')
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_last_row_without_padding() -> None:
    made = message('bgr8', RGB[:, :, ::-1], padding=5)
    made.data = made.data[:-5]
    np.testing.assert_array_equal(image_to_rgb(made, 'image'), RGB)


BAD = {
    'empty': (message('rgb8', RGB, data=array.array('B')), 'the image is empty'),
    'no pixels': (message('rgb8', RGB, height=0), 'the image is empty'),
    'step too small': (message('rgb8', RGB, step=W * 3 - 1),
                       f'need a step of at least {W * 3} and {H * (W * 3 - 1) + 1} bytes of data, '
                       f'got step {W * 3 - 1} and {H * W * 3} bytes'),
    'step too large': (message('rgb8', RGB, step=W * 3 + 1), f'got step {W * 3 + 1}'),
    'data too short': (message('rgb8', RGB, height=H + 1), f'and {H * W * 3} bytes; check'),
    'huge size': (message('rgb8', RGB, height=2**31, width=2**31, step=2**32 - 1),
                  'need a step of at least'),
    'unknown encoding': (message('hsv9', RGB), "unknown encoding 'hsv9'"),
    'no encoding': (message('', RGB), "unknown encoding ''"),
    'depth in mm': (message('16UC1', RGB[:, :, :2]), 'depth images are not watched'),
    'depth in m': (message('32FC1', alpha(RGB)), 'depth images are not watched'),
    'bayer, short': (message('bayer_rggb8', GREY, height=H + 1), 'need a step of at least'),
}


@pytest.mark.parametrize('name', BAD)
def test_malformed(name: str) -> None:
    made, text = BAD[name]
    with pytest.raises(FrameError, match=re.escape(text)) as caught:
        image_to_rgb(made, '/front/image')
    assert str(caught.value).startswith('/front/image: ')


def compressed(suffix: str, pixels: np.ndarray) -> CompressedImage:
    import cv2
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return CompressedImage(format=suffix[1:], data=array.array('B', data.tobytes()))


def test_png_is_exact() -> None:
    np.testing.assert_array_equal(
        compressed_to_rgb(compressed('.png', RGB[:, :, ::-1]), 'image'), RGB)


def test_jpeg_has_red_first() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 2] = 255
    got = compressed_to_rgb(compressed('.jpg', red), 'image')
    assert got[:, :, 0].min() > 240 and got[:, :, 1:].max() < 15


def test_grey_jpeg_becomes_rgb() -> None:
    assert compressed_to_rgb(compressed('.jpg', GREY), 'image').shape == (H, W, 3)


@pytest.mark.parametrize(('made', 'text'), [
    (CompressedImage(format='jpeg'), 'the compressed image is empty'),
    (CompressedImage(format='jpeg', data=array.array('B', b'no jpeg at all')), 'no readable JPEG'),
    (CompressedImage(format='16UC1; compressedDepth', data=array.array('B', b'x')),
     'depth images are not watched'),
])
def test_malformed_compressed(made: CompressedImage, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        compressed_to_rgb(made, '/front/image/compressed')
