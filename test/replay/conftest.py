"""Small videos made on the fly."""

from fractions import Fraction

import numpy as np
import pytest

SIZE = (48, 64)                                                             # height, width in px


def grey_level(index):
    """The level of a test video's frame: told apart after lossy coding."""
    return 20 + 8 * index


def write_video(path, frames=25, fps=Fraction(10), size=SIZE, codec='mpeg4', stamps=None):
    """A video whose frame k is grey (level 20 + 8k) with a red square in its upper left corner."""
    av = pytest.importorskip('av')
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = 'yuv420p'
        stream.bit_rate = 4_000_000
        stream.gop_size = 5
        stream.codec_context.time_base = Fraction(1, 1_000) if stamps else 1 / Fraction(fps)
        for index in range(frames):
            image = np.full((*size, 3), grey_level(index), np.uint8)
            image[:16, :16] = (255, 0, 0)
            picture = av.VideoFrame.from_ndarray(image, format='rgb24')
            picture.pts = stamps[index] if stamps else index
            picture.time_base = stream.codec_context.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope='session')
def video(tmp_path_factory):
    """25 frames, 10 per second, 64×48."""
    return write_video(tmp_path_factory.mktemp('video') / 'small.mp4')
