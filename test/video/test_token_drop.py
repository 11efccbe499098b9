"""Which tokens are kept: against a naive loop, then one property at a time, then the tabletop."""

import numpy as np
import pytest

from tww_ros.config import WatchConfig
from tww_ros.types import NS_PER_S
from tww_ros.video.pixels import to_pixels
from tww_ros.video.token_drop import LEAST_BLOCKS, TokenDrop
from tww_ros.world.render import Renderer
from tww_ros.world.table import TEST_SEEDS, simulate
from tww_ros.world.truth import truth_at

CELL = 32
THRESHOLD = 0.08
# Block means are rounded to a 4096th of black to white; a few roundings come together.
ROUNDED = 4 / 4_096


def drop(threshold=THRESHOLD, refresh_s=1_000.0):
    return TokenDrop(WatchConfig(drop_threshold=threshold, drop_refresh_s=refresh_s))


def keep(token_drop, *images, at_s=0.0, camera='front', epoch=0):
    """The mask [rows, columns] of one patch of images whose sides are multiples of 32 px."""
    pixels = to_pixels(images, min_pixels=1_024, max_pixels=10_000_000)
    mask = token_drop.keep(pixels, camera=camera, epoch=epoch, stamp_ns=round(at_s * NS_PER_S))
    assert mask.dtype == bool and mask.shape == (pixels.grid_h * pixels.grid_w // 4,)
    return mask.reshape(pixels.grid_h // 2, pixels.grid_w // 2)


def texture(height, width, seed=0, grain_px=6):
    """A picture of random patches: edges everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (height // grain_px + 1, width // grain_px + 1, 3))
    return coarse.repeat(grain_px, 0).repeat(grain_px, 1)[:height, :width].astype(np.uint8)


def noisy(image, sigma, seed):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def naive_deviations(now, before):
    """How far each block lies outside of the other patch, [rows, columns, 64], in float64.

    now, before: uint8 [2, H, W, 3].
    """
    def blocks(patch):
        two, height, width, _ = patch.shape
        return np.array([[[[patch[t, y:y + 4, x:x + 4, c].astype(float).mean() / 255
                            for x in range(0, width, 4)] for y in range(0, height, 4)]
                          for c in range(3)] for t in range(two)])        # [2, 3, H/4, W/4]

    new, old = blocks(now), blocks(before)
    rows, columns = new.shape[2:]
    for y in range(0, rows, 8):
        for x in range(0, columns, 8):
            cell = np.s_[:, :, y:y + 8, x:x + 8]
            light = (new[cell] - old[cell]).mean((2, 3), keepdims=True)
            new[cell] -= np.clip(light, -THRESHOLD / 2, THRESHOLD / 2)
    found = np.zeros((rows, columns))
    for y in range(rows):
        for x in range(columns):
            near = np.s_[:, :, max(0, y - 1):y + 2, max(0, x - 1):x + 2]
            here = np.s_[:, :, y, x]
            out = [np.maximum(one[here] - other[near].max((2, 3)),
                              other[near].min((2, 3)) - one[here]).max()
                   for one, other in ((new, old), (old, new))]
            found[y, x] = max(out)
    return found.reshape(rows // 8, 8, columns // 8, 8).swapaxes(1, 2).reshape(
        rows // 8, columns // 8, 64)


@pytest.mark.parametrize('seed', range(4))
def test_equals_a_naive_loop_and_compares_with_the_last_kept(seed):
    rng = np.random.default_rng(seed)
    token_drop = drop()
    picture = texture(96, 96, seed)
    last = np.stack([picture, picture])
    assert keep(token_drop, *last).all()
    either = 0
    for step in range(1, 6):
        picture = picture.copy()
        y, x, side = rng.integers(0, 76), rng.integers(0, 76), rng.integers(4, 20)
        picture[y:y + side, x:x + side] = rng.integers(0, 255, 3)
        now = np.stack([noisy(picture, 3, 10 * step), noisy(np.roll(picture, 1, 0), 3, step)])
        deviations = naive_deviations(now, last)
        must, may = ((deviations > THRESHOLD + slack).sum(2) >= LEAST_BLOCKS
                     for slack in (ROUNDED, -ROUNDED))
        kept = keep(token_drop, *now, at_s=step)
        assert not (must & ~kept).any() and not (kept & ~may).any()
        either += (may & ~must).sum()
        last = np.where(kept.repeat(CELL, 0).repeat(CELL, 1)[None, :, :, None], now, last)
    assert 2 < token_drop.kept - 9 < 5 * 4 and either <= 1


def test_off_keeps_everything_and_counts():
    token_drop = drop(threshold=0.0)
    picture = texture(64, 96)
    for _ in range(3):
        assert keep(token_drop, picture).all()
    assert (token_drop.seen, token_drop.kept, token_drop.dropped_share) == (18, 18, 0.0)


def test_counts_and_share():
    token_drop = drop()
    assert token_drop.dropped_share == 0.0
    picture = texture(64, 96)
    for _ in range(4):
        keep(token_drop, picture)
    assert (token_drop.seen, token_drop.kept, token_drop.dropped_share) == (24, 6, 0.75)


@pytest.mark.parametrize('sigma', [3, 8])
def test_noise_keeps_nothing(sigma):
    token_drop = drop()
    picture = texture(96, 128)
    keep(token_drop, noisy(picture, sigma, 0), noisy(picture, sigma, 1))
    for seed in range(2, 30, 2):
        assert not keep(token_drop, noisy(picture, sigma, seed),
                        noisy(picture, sigma, seed + 1)).any()


def test_a_camera_that_shakes_keeps_nothing():
    token_drop = drop()
    wide = texture(128 + 8, 160 + 8, grain_px=24)
    for step, (y, x) in enumerate([(4, 4), (2, 5), (6, 3), (4, 7), (1, 4), (4, 1), (7, 6)]):
        kept = keep(token_drop, wide[y:y + 128, x:x + 160])
        assert kept.all() if step == 0 else not kept.any(), (y, x)


@pytest.mark.parametrize('y, x', [(36, 36), (50, 50), (33, 47), (44, 75)])
@pytest.mark.parametrize('colour', [(200, 60, 50), (90, 90, 90), (120, 120, 170)])
def test_a_small_thing_put_down_and_taken(y, x, colour):
    token_drop = drop()
    empty = noisy(np.full((128, 128, 3), 125, np.uint8), 3, 0)
    full = empty.copy()
    full[y:y + 12, x:x + 12] = colour
    keep(token_drop, empty)
    where = np.zeros((4, 4), bool)
    where[y // CELL, x // CELL] = True
    touched = np.zeros((4, 4), bool)
    touched[y // CELL:(y + 11) // CELL + 1, x // CELL:(x + 11) // CELL + 1] = True
    for picture in (full, empty, full, empty):
        kept = keep(token_drop, picture)
        assert kept[where].all() and not kept[~touched].any()
        assert not keep(token_drop, picture).any()


def test_either_frame_of_a_patch_counts():
    empty = np.full((96, 96, 3), 120, np.uint8)
    full = empty.copy()
    full[40:56, 40:56] = 20
    for pair in ((full, empty), (empty, full)):
        token_drop = drop()
        keep(token_drop, empty, empty)
        assert keep(token_drop, *pair).ravel().nonzero()[0].tolist() == [4]
        assert keep(token_drop, empty, empty).ravel().nonzero()[0].tolist() == [4]


def test_slow_drift_does_not_vanish():
    """A spot that darkens by one level a patch: compared with the last patch it never changes."""
    token_drop = drop()
    shown = None
    kept_at = []
    for level in range(100):
        picture = np.full((96, 96, 3), 150, np.uint8)
        picture[36:60, 36:60] -= np.uint8(level)
        if keep(token_drop, picture)[1, 1]:
            kept_at.append(level)
            shown = level
        # At most the threshold and what is granted to the light.
        assert level - shown <= 1.5 * THRESHOLD * 255 + 1
    assert len(kept_at) >= 4


def test_each_place_is_kept_every_refresh_s():
    token_drop = drop(refresh_s=5.0)
    picture = texture(64, 64)
    changed = picture.copy()
    changed[:32, :32] = 255 - changed[:32, :32]
    masks = [keep(token_drop, picture if second < 3 else changed, at_s=second)
             for second in range(14)]
    assert [second for second, mask in enumerate(masks) if mask[0, 0]] == [0, 3, 8, 13]
    assert [second for second, mask in enumerate(masks) if mask[1, 1]] == [0, 5, 10]


def test_slow_light_keeps_nothing_and_a_lamp_everything():
    token_drop = drop()
    picture = texture(96, 96)
    keep(token_drop, picture)
    for share in (0.99, 0.97, 0.98, 1.02):
        assert not keep(token_drop, (picture * share).astype(np.uint8)).any()
    assert keep(token_drop, (picture * 0.6).astype(np.uint8)).all()


def test_when_most_changes_everything_is_kept():
    wide = texture(128, 400, grain_px=16)
    wide[:40] = 90                                              # nothing to see here: the sky
    token_drop = drop()
    for x in range(0, 240, 24):
        assert keep(token_drop, wide[:, x:x + 160]).all()


def test_cameras_epochs_and_resolutions_start_anew_and_apart():
    token_drop = drop()
    picture, other = texture(64, 64, 1), texture(64, 64, 2)
    assert keep(token_drop, picture, camera='left').all()
    assert keep(token_drop, other, camera='right').all()
    assert not keep(token_drop, picture, camera='left').any()
    assert not keep(token_drop, other, camera='right').any()
    assert keep(token_drop, picture, camera='left', epoch=1).all()
    assert not keep(token_drop, other, camera='right').any()
    assert keep(token_drop, picture[:32], camera='left', epoch=1).all()
    assert keep(token_drop, picture, camera='left', epoch=1).all()


def test_another_patch_size():
    token_drop = TokenDrop(WatchConfig(drop_threshold=THRESHOLD), patch_size=14)

    def kept(image):
        pixels = to_pixels([image], patch_size=14, min_pixels=784, max_pixels=10_000_000)
        return token_drop.keep(pixels, camera='a', epoch=0, stamp_ns=0).tolist()

    empty = np.full((56, 84, 3), 100, np.uint8)
    full = empty.copy()
    full[34:50, 34:50] = 220
    assert kept(empty) == [True] * 6
    assert kept(empty) == [False] * 6
    assert kept(full) == [False] * 4 + [True, False]


def test_changes_of_the_tabletop_are_kept_and_most_else_is_dropped():
    """A change: in view stands something else than when its place was last kept in view."""
    token_drop = drop()
    changes = kept = 0
    for epoch, seed in enumerate(range(TEST_SEEDS.start + 100, TEST_SEEDS.start + 104)):
        episode = simulate(seed, 80.0)
        renderer = Renderer(episode, 192)
        shown = None
        for second in range(0, 80, 2):
            frames = [renderer.frame(float(second)), renderer.frame(second + 1.0)]
            pixels = to_pixels(frames, min_pixels=9_216, max_pixels=9_216)
            mask = token_drop.keep(pixels, camera='a', epoch=epoch, stamp_ns=second * NS_PER_S)
            truth = truth_at(episode, second + 1.0)
            stands = ['cover' if place in truth.standing.covered else thing
                      for place, thing in enumerate(truth.standing.things)]
            shown = shown or stands.copy()
            for place in np.flatnonzero(truth.visible):
                if stands[place] != shown[place]:
                    changes += 1
                    kept += mask[place]
                if mask[place]:
                    shown[place] = stands[place]
    assert changes > 30
    assert kept / changes >= 0.95
    assert token_drop.dropped_share > 0.75
