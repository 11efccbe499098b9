"""Vision tokens that tell nothing new: not read at all, or gone when their segment is old."""

from __future__ import annotations

import numpy as np
import pytest
from engine.harness import SMALL, WAIT_S, S, watch

from tww_ros import Engine, EngineConfig, Frame, Question

# 4 × 4 cells of 32 px; two frames a second make one patch a second, two patches a segment.
SIDE_PX = 128
SETTINGS = {**SMALL, 'watch.max_pixels': SIDE_PX ** 2, 'watch.drop_threshold': 0.08,
            'watch.drop_refresh_s': 1_000.0, 'note.enabled': False}


def frames(seconds):
    """A grey picture; at second 6 a white square comes into one cell and stays."""
    rng = np.random.default_rng(0)
    still = rng.integers(90, 110, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
    with_square = still.copy()
    with_square[4:28, 36:60] = 255
    return [Frame(number * S // 2, 'front', with_square if number >= 12 else still)
            for number in range(2 * seconds)]


def run(tiny, **settings):
    flat = {**SETTINGS, **{name.replace('__', '.'): value for name, value in settings.items()}}
    with Engine(tiny, EngineConfig.from_flat(flat)) as engine:
        watch(engine, frames(20))
        answer = engine.ask(Question('What?', max_new_tokens=2)).result(WAIT_S)
        return engine.stats(), engine.memory.segments(), answer


def test_everything_is_kept_by_default(tiny):
    stats, infos, _ = run(tiny, watch__drop_threshold=0.0)
    assert stats.tokens_seen == stats.tokens_dropped == 0
    assert len({info.tokens for info in infos[5:]}) == 1


def test_unread_tokens_are_never_in_memory(tiny):
    whole = {info.order: info.tokens for info in run(tiny, watch__drop_threshold=0.0)[1]}
    stats, infos, answer = run(tiny, watch__drop_unread=True)
    dropped = {info.order: whole[info.order] - info.tokens for info in infos}
    # The first patch is new, the rest of 16 cells twice a segment is not, but for one cell.
    assert dropped == {0: 16, 1: 32, 2: 32, 3: 31, **dict.fromkeys(range(4, 10), 32)}
    assert stats.tokens_seen == 20 * 16
    assert stats.tokens_dropped == sum(dropped.values())
    assert answer.completion_tokens == 2


@pytest.mark.parametrize('bits', [3, 16])
def test_blocks_that_leave_the_device_early_are_thinned_on_the_way(tiny, bits):
    whole = run(tiny, watch__drop_threshold=0.0)[1]
    infos = run(tiny, memory__device_bytes=65_536, memory__kv_bits=bits)[1]
    assert infos[5].tier == ('quantized' if bits == 3 else 'host')
    # 16 cells twice a segment, of which nothing is left.
    token_bytes = tiny.block_shape.token_bytes * (1 if bits == 16 else 3.25 / 32)
    assert infos[5].kv_bytes <= (whole[5].tokens - 32) * token_bytes * 1.05


@pytest.mark.parametrize('segments', [1, 3])
def test_read_tokens_leave_with_their_segment_s_youth(tiny, segments):
    whole = run(tiny, watch__drop_threshold=0.0)[1]
    recent_tokens = sum(info.tokens for info in whole[-segments:])
    infos = run(tiny, memory__recent_tokens=recent_tokens)[1]
    token_bytes = tiny.block_shape.token_bytes
    lost = [(before.kv_bytes - info.kv_bytes) // token_bytes
            for before, info in zip(whole, infos, strict=True)]
    old = len(infos) - segments
    assert lost == [16, 32, 32, 31, *[32] * 6][:old] + [0] * segments
    assert [info.tokens for info in infos] == [info.tokens for info in whole], 'what was read'
