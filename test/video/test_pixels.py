"""Pixels against the stock processor and against an independent loop."""

import numpy as np
import pytest

from tww_ros.errors import FrameError
from tww_ros.video.pixels import target_size, to_pixels

LIMITS = {'min_pixels': 4_096, 'max_pixels': 200_704}
# Odd sizes, smaller than one cell, extreme aspect, no resize needed, shrunk and enlarged.
SIZES = [(480, 640), (432, 768), (448, 448), (96, 128), (37, 53), (481, 639), (8, 9), (1, 1),
         (5, 900), (900, 5), (31, 33), (2, 400)]


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def stock():
    module = pytest.importorskip(
        'transformers.models.qwen2_vl.image_processing_pil_qwen2_vl')

    def process(picture, min_pixels, max_pixels, patch_size=16):
        processor = module.Qwen2VLImageProcessorPil(
            patch_size=patch_size, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3,
            image_std=[0.5] * 3, min_pixels=min_pixels, max_pixels=max_pixels)
        out = processor(images=[picture], input_data_format='channels_last', return_tensors='np')
        return out['pixel_values'], tuple(out['image_grid_thw'][0].tolist())

    process.smart_resize = module.smart_resize
    return process


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('limits', [(4_096, 200_704), (65_536, 65_536), (1_024, 16_777_216)])
def test_one_frame_equals_stock_processor(stock, size, limits):
    picture = image(*size)
    values, (_, grid_h, grid_w) = stock(picture, *limits)
    pixels = to_pixels([picture], min_pixels=limits[0], max_pixels=limits[1])
    assert (pixels.grid_h, pixels.grid_w) == (grid_h, grid_w)
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values, values)


def test_other_patch_size_equals_stock_processor(stock):
    picture = image(111, 222)
    values, _ = stock(picture, 3_136, 50_176, patch_size=14)
    pixels = to_pixels([picture], patch_size=14, min_pixels=3_136, max_pixels=50_176)
    np.testing.assert_array_equal(pixels.values, values)


def test_target_size_equals_stock_for_many_sizes(stock):
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(0, np.log(4_000), (500, 2))).astype(int)
    checked = 0
    for height, width in sizes.tolist():
        for factor in (28, 32):
            expected = None
            try:
                expected = stock.smart_resize(height, width, factor, 4_096, 200_704)
            except ValueError:
                with pytest.raises(FrameError, match='1:200'):
                    target_size(height, width, factor=factor, **LIMITS)
                continue
            assert target_size(height, width, factor=factor, **LIMITS) == expected
            checked += 1
    assert checked > 500


def naive_rows(frames):
    """Two [H, W, 3] frames, sizes already multiples of 32 → rows, one value at a time."""
    height, width = frames[0].shape[:2]
    rows = []
    for top in range(0, height, 32):
        for left in range(0, width, 32):
            for down in (0, 16):
                for right in (0, 16):
                    row = []
                    for colour in range(3):
                        for frame in frames:
                            for y in range(16):
                                for x in range(16):
                                    byte = frame[top + down + y, left + right + x, colour]
                                    row.append((int(byte) / 255 - 0.5) / 0.5)
                    rows.append(row)
    return np.array(rows)


def test_two_frames_equal_naive_loop():
    frames = [image(96, 64, 1), image(96, 64, 2)]
    pixels = to_pixels(frames, **LIMITS)
    assert (pixels.grid_h, pixels.grid_w) == (6, 4)
    assert pixels.values.shape == (24, 3 * 2 * 16 * 16)
    np.testing.assert_allclose(pixels.values, naive_rows(frames), atol=1e-6)


def test_second_frame_fills_only_its_half():
    first, second = image(480, 640, 1), image(480, 640, 2)
    both = to_pixels([first, second], **LIMITS).values.reshape(-1, 3, 2, 256)
    for index, frame in enumerate((first, second)):
        alone = to_pixels([frame], **LIMITS).values.reshape(-1, 3, 2, 256)
        np.testing.assert_array_equal(both[:, :, index], alone[:, :, index])
    assert not np.array_equal(both[:, :, 0], both[:, :, 1])


def test_equal_frames_are_resized_once(monkeypatch):
    from tww_ros.video import pixels as module
    calls = []
    resize = module._resize
    monkeypatch.setattr(module, '_resize', lambda *args: calls.append(1) or resize(*args))
    frame = image(50, 70)
    twice = to_pixels([frame, frame.copy()], **LIMITS)
    assert len(calls) == 1
    np.testing.assert_array_equal(twice.values, to_pixels([frame], **LIMITS).values)


def test_read_only_and_strided_images_are_taken():
    wide = image(64, 200)
    view = wide[:, ::2]
    frozen = np.frombuffer(view.tobytes(), np.uint8).reshape(view.shape)
    np.testing.assert_array_equal(to_pixels([view], **LIMITS).values,
                                  to_pixels([frozen], **LIMITS).values)


@pytest.mark.parametrize('frames, message', [
    ([], '0'),
    ([image(32, 32)] * 3, '3'),
    ([image(32, 32), image(32, 64)], 'one size'),
    ([image(32, 32).astype(np.float32)], 'float32'),
    ([image(32, 32)[:, :, 0]], 'RGB'),
    ([image(1, 201)], '1:200'),
    ([np.zeros((0, 5, 3), np.uint8)], 'at least 1×1'),
])
def test_bad_frames_are_refused(frames, message):
    with pytest.raises(FrameError, match=message):
        to_pixels(frames, **LIMITS)
