"""Encodings that only the installed cv_bridge reads, and what the node says without it."""

import array
import re
import sys

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from tww_ros.errors import FrameError
from tww_ros.node import bridge
from tww_ros.video import encodings

H, W = 4, 6


@pytest.fixture(autouse=True)
def import_anew():
    bridge._bridge.cache_clear()


def message(encoding: str, pixel_bytes: int, padding: int = 0, **changes: object) -> Image:
    """Random rows, each followed by `padding` bytes of 0xEE, as it comes from the wire."""
    rows = np.random.default_rng(3).integers(0, 256, (H, W * pixel_bytes), dtype=np.uint8)
    rows = np.hstack([rows, np.full((H, padding), 0xEE, np.uint8)])
    made = Image(height=H, width=W, encoding=encoding, step=rows.shape[1],
                 data=array.array('B', rows.tobytes()))
    for name, value in changes.items():
        setattr(made, name, value)
    return deserialize_message(serialize_message(made), Image)


@pytest.mark.parametrize('padding, big', [(0, 0), (7, 0), (0, 1)])
@pytest.mark.parametrize('encoding, size', [('8UC3', 3), ('8UC4', 4)])
def test_what_opencv_writes_is_read_by_cv_bridge(encoding: str, size: int, padding: int,
                                                 big: int) -> None:
    made = message(encoding, size, padding, is_bigendian=big)
    with pytest.raises(FrameError, match='unknown encoding'):
        encodings.image_to_rgb(made, '/image')
    expected = np.empty((H, W, 3), np.uint8)
    for y in range(H):
        for x in range(W):
            blue, green, red = (made.data[y * made.step + x * size + c] for c in range(3))
            expected[y, x] = red, green, blue
    got = bridge.image_to_rgb(made, '/image')
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_an_array_of_opencv_comes_back() -> None:
    """A driver in Python that does not name the encoding of its picture."""
    cv2 = pytest.importorskip('cv2')
    from cv_bridge import CvBridge
    rgb = np.random.default_rng(4).integers(0, 256, (H, W, 3), dtype=np.uint8)
    try:
        made = CvBridge().cv2_to_imgmsg(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    except AttributeError:
        pytest.skip('this cv_bridge cannot write with this NumPy')
    np.testing.assert_array_equal(bridge.image_to_rgb(made, '/image'), rgb)


def test_common_encodings_need_no_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    made = message('rgb8', 3)
    np.testing.assert_array_equal(bridge.image_to_rgb(made, '/image').reshape(-1), made.data)
    with pytest.raises(FrameError, match=r"^/image: unknown encoding '8UC3' needs cv_bridge, .*"
                                         'install it'):
        bridge.image_to_rgb(message('8UC3', 3), '/image')


@pytest.mark.parametrize('made, words', [
    (message('hologram', 3), "unknown encoding 'hologram', which cv_bridge cannot read"),
    (message('', 3), "unknown encoding ''"),
    (message('16UC3', 6), 'cannot read as rgb8'),
    (message('32FC1', 4), 'depth images are not watched'),
    (message('8UC3', 3, step=W * 3 - 1), f'a step of at least {W * 3} and'),
    (message('8UC3', 3, height=H + 1), f'got step {W * 3} and {H * W * 3} bytes'),
    (message('8UC3', 3, height=0), 'height × step bytes'),
    (message('8UC4', 4, width=0), 'a step of at least 0'),
    (message('8UC3', 3, data=array.array('B')), 'and 0 bytes'),
])
def test_what_nobody_reads(made: Image, words: str) -> None:
    with pytest.raises(FrameError, match=re.escape(words)) as caught:
        bridge.image_to_rgb(made, '/front/image')
    assert str(caught.value).startswith('/front/image: ')
