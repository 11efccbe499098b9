"""Every encoding against values computed pixel by pixel."""

from types import SimpleNamespace

import numpy as np
import pytest

from tww_ros.errors import FrameError
from tww_ros.video.encodings import CHANNELS, OPENCV, compressed_to_rgb, image_to_rgb

HEIGHT, WIDTH = 4, 6


def message(encoding, rows, width=WIDTH, padding=0, big=0):
    """rows: uint8 [H, bytes]"""
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(height=len(rows), width=width, encoding=encoding, is_bigendian=big,
                           step=rows.shape[1], data=rows.reshape(-1))


def random_bytes(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('big', [0, 1])
@pytest.mark.parametrize('encoding', CHANNELS)
def test_packed(encoding, big, padding):
    name = encoding.removesuffix('16').removesuffix('8')
    letters = {'mono': 'g', '8UC1': 'g'}.get(name, name)
    size = 2 if encoding.endswith('16') else 1
    rows = random_bytes(HEIGHT, WIDTH * len(letters) * size)
    expected = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            for target, colour in enumerate('rgb'):
                channel = letters.index(colour) if colour in letters and letters != 'g' else 0
                at = (x * len(letters) + channel) * size
                expected[y, x, target] = rows[y, at if big or size == 1 else at + 1]
    got = image_to_rgb(message(encoding, rows, padding=padding, big=big), '/image')
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('encoding', [name for name in OPENCV if name.startswith('bayer')])
def test_bayer_of_one_colour(encoding):
    pytest.importorskip('cv2')
    colour = {'r': 200, 'g': 120, 'b': 30}
    pattern = encoding.removeprefix('bayer_')[:4]
    mosaic = np.array([[colour[pattern[2 * (y % 2) + x % 2]] for x in range(8)]
                       for y in range(8)], np.uint8)
    if encoding.endswith('16'):
        mosaic = np.stack([np.zeros_like(mosaic), mosaic], axis=-1).reshape(8, 16)
    got = image_to_rgb(message(encoding, mosaic, width=8), '/image')
    assert got.shape == (8, 8, 3)
    assert (got[2:-2, 2:-2] == [200, 120, 30]).all()


@pytest.mark.parametrize('encoding, order', [('yuv422', 'uyvy'), ('uyvy', 'uyvy'),
                                             ('yuv422_yuy2', 'yuyv'), ('yuyv', 'yuyv')])
def test_yuv_of_one_colour(encoding, order):
    """BT.601, video range, by its equations."""
    pytest.importorskip('cv2')
    values = {'y': 150, 'u': 90, 'v': 200}
    rows = np.tile(np.array([values[letter] for letter in order], np.uint8), (4, 3))
    y, u, v = 1.164 * (150 - 16), 90 - 128, 200 - 128
    expected = [y + 1.596 * v, y - 0.813 * v - 0.392 * u, y + 2.017 * u]
    got = image_to_rgb(message(encoding, rows), '/image')
    assert got.shape == (4, 6, 3)
    assert abs(got[0, 0] - np.clip(expected, 0, 255)).max() <= 1.5


def test_rgb8_is_not_copied():
    source = message('rgb8', random_bytes(HEIGHT, WIDTH * 3))
    assert np.shares_memory(image_to_rgb(source, '/image'), source.data)


def test_compressed():
    cv2 = pytest.importorskip('cv2')
    image = random_bytes(8, 8, 3)
    data = cv2.imencode('.png', image[:, :, ::-1])[1].reshape(-1)
    np.testing.assert_array_equal(
        compressed_to_rgb(SimpleNamespace(format='png', data=data), '/image'), image)
    for bad, words in ((data[:0], 'empty'), (data[:20], 'no readable')):
        with pytest.raises(FrameError, match=words):
            compressed_to_rgb(SimpleNamespace(format='png', data=bad), '/image')
    with pytest.raises(FrameError, match='depth'):
        compressed_to_rgb(SimpleNamespace(format='16UC1; compressedDepth png', data=data), '/d')


@pytest.mark.parametrize('change, words', [
    ({'encoding': '16UC1'}, 'depth'), ({'encoding': 'nv12'}, 'unknown encoding'),
    ({'width': 0}, 'empty'), ({'step': 17}, 'step of at least 18'),
    ({'data': np.zeros(70, np.uint8)}, '72 bytes of data, got step 18 and 70'),
])
def test_malformed(change, words):
    source = message('rgb8', random_bytes(HEIGHT, WIDTH * 3))
    vars(source).update(change)
    with pytest.raises(FrameError, match=words) as caught:
        image_to_rgb(source, '/front')
    assert str(caught.value).startswith('/front: ')
