"""Pictures of the tabletop show what its ground truth says, and nothing else.

Colours are told by a rule in HSV that knows nothing of how things are drawn; hands are found by
comparing with the picture of a world in which nothing happens.
"""

import itertools
import json

import cv2
import numpy as np
import pytest

from tww_ros.world.render import Renderer
from tww_ros.world.scene import scene_at
from tww_ros.world.surface import STYLES
from tww_ros.world.table import (
    COLOURS,
    KINDS,
    PLACES,
    SHAPES,
    TEST_SEEDS,
    Episode,
    Event,
    TableState,
    Thing,
    simulate,
)
from tww_ros.world.truth import truth_at

SEEDS = [3, 14, 15, TEST_SEEDS.start + 92]
CUP, STAR, BALL = Thing('red', 'cup'), Thing('blue', 'star'), Thing('white', 'ball')
BOX = Thing('green', 'box')


def table(things, covered=()):
    """A state from {place: thing}."""
    return TableState(tuple(things.get(place) for place in range(9)), frozenset(covered))


def at_rest(seed, state, t_s, size_px=192):
    return Renderer(Episode(seed, 1000.0, state, ()), size_px).frame(t_s)


def disc(size_px, place, radius=0.125):
    """bool [size_px, size_px]: the pixels within radius of the middle of a place."""
    axis = (np.arange(size_px) + 0.5) / size_px
    x, y = (place % 3 + 0.5) / 3, (place // 3 + 0.5) / 3
    return np.hypot(axis[None, :] - x, axis[:, None] - y) < radius


def difference(one, other):
    """int [h, w]: the largest difference over the three colours."""
    return np.abs(one.astype(int) - other.astype(int)).max(axis=2)


def one_event(kind, seed=3):
    state = table({0: CUP, 4: STAR, 2: BALL}, covered={4} if kind == 'uncover' else ())
    event = {'put': Event(0, kind, 2.0, 4.0, BOX, 7), 'take': Event(0, kind, 2.0, 4.0, STAR, 4),
             'move': Event(0, kind, 2.0, 4.0, CUP, 7, 0),
             'swap': Event(0, kind, 2.0, 4.0, CUP, 4, 0, STAR),
             'cover': Event(0, kind, 2.0, 4.0, STAR, 4),
             'uncover': Event(0, kind, 2.0, 4.0, STAR, 4)}[kind]
    return Episode(seed, 10.0, state, (event,))


def test_bytes_depend_on_seed_size_and_time_only():
    episode = simulate(SEEDS[0], 60.0)
    times_s = np.random.default_rng(0).uniform(0, 60, 40).round(3)
    one, other = Renderer(episode, 96), Renderer(simulate(SEEDS[0], 60.0), 96)
    frames = {t_s: one.frame(t_s).tobytes() for t_s in times_s}
    for t_s in reversed(times_s):
        assert other.frame(t_s + 4e-4).tobytes() == frames[t_s]
        assert one.frame(t_s).tobytes() == frames[t_s]
    assert len(set(frames.values())) == len(times_s)


def test_a_frame_is_the_caller_s_own():
    renderer = Renderer(simulate(SEEDS[0], 60.0), 96)
    before = renderer.frame(1.0)
    assert before.shape == (96, 96, 3) and before.dtype == np.uint8
    kept = before.copy()
    before[:] = 0
    assert np.array_equal(renderer.frame(1.0), kept)


def test_another_seed_looks_different():
    looks = [at_rest(seed, TableState(), 1.0, 96).tobytes() for seed in range(20)]
    assert len(set(looks)) == 20


@pytest.mark.parametrize('seed', SEEDS)
def test_nothing_is_seen_at_an_empty_place(seed):
    state = simulate(seed, 300.0).states[-1]
    assert state.empty and state.open
    frame, bare = at_rest(seed, state, 7.0), at_rest(seed, TableState(), 7.0)
    changed = difference(frame, bare)
    for place in state.empty:
        # A cover's rim or a shadow may reach over the edge of the place next to it.
        assert not changed[disc(192, place)].any(), PLACES[place]
    for place in state.open:
        assert (changed[disc(192, place)] > 25).mean() > 0.25, PLACES[place]


def hsv_colour(pixels):
    """The most frequent colour of uint8 [n, 3], by hue in degrees, saturation and value."""
    rgb = pixels.astype(float) / 255
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = high - low
    saturation = chroma / np.maximum(high, 1e-6)
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-6)
    hue = 60 * np.select([high == red, high == green],
                         [((green - blue) / safe) % 6, (blue - red) / safe + 2],
                         (red - green) / safe + 4)
    grey = (saturation < 0.3) | (high < 0.2)
    masks = {'white': grey & (high > 0.5), 'black': grey & (high < 0.33),
             'red': (hue < 14) | (hue > 335), 'orange': (hue >= 17) & (hue < 41),
             'yellow': (hue >= 44) & (hue < 70), 'green': (hue >= 90) & (hue < 175),
             'blue': (hue >= 195) & (hue < 245), 'purple': (hue >= 255) & (hue < 315)}
    votes = {name: (mask if name in ('white', 'black') else mask & ~grey).sum()
             for name, mask in masks.items()}
    return max(votes, key=votes.get)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('shape', SHAPES)
def test_colours_are_told_apart_in_every_light(shape, style):
    state = table({place + (place > 3): Thing(colour, shape)
                   for place, colour in enumerate(COLOURS)})
    for seed in range(6):
        for t_s in (0.5, 333.0, 777.0):
            frame = Renderer(Episode(seed, 1e3, state, ()), 96, style).frame(t_s)
            bare = Renderer(Episode(seed, 1e3, TableState(), ()), 96, style).frame(t_s)
            changed = difference(frame, bare) > 30
            for place, thing in enumerate(state.things):
                if thing is not None:
                    pixels = frame[changed & disc(96, place)]
                    assert hsv_colour(pixels) == thing.colour, (seed, t_s, thing)


def silhouette(shape, colour='blue', seed=3):
    frame = at_rest(seed, table({4: Thing(colour, shape)}), 1.0, 96)
    return difference(frame, at_rest(seed, TableState(), 1.0, 96))[32:64, 32:64] > 40


def test_shapes_are_told_apart_when_small():
    masks = {shape: silhouette(shape) for shape in SHAPES}
    for one, other in itertools.combinations(SHAPES, 2):
        both = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
        assert both < 0.82, (one, other)
    assert not masks['ring'][14:18, 14:18].any()
    for shape, mask in masks.items():
        wide = mask.any(axis=0).sum()
        assert 18 <= wide <= 27, (shape, wide)


@pytest.mark.parametrize('seed', SEEDS)
def test_no_hand_is_seen_outside_an_event(seed):
    episode = simulate(seed, 40.0)
    renderer = Renderer(episode, 96)
    for event in episode.events:
        for t_s in (event.start_s - 0.3, event.start_s - 0.01, event.end_s + 0.01,
                    event.end_s + 0.3):
            state = episode.state_at(t_s)
            assert np.array_equal(renderer.frame(t_s), at_rest(seed, state, t_s, 96))
        before, after = episode.states[event.number], episode.states[event.number + 1]
        first_s, last_s = event.start_s + 1e-3, event.end_s - 0.03
        assert np.array_equal(renderer.frame(first_s), at_rest(seed, before, first_s, 96))
        # Until it is over something of the hand, or of what it holds, can be seen.
        assert not np.array_equal(renderer.frame(last_s), at_rest(seed, after, last_s, 96))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', SEEDS)
def test_a_hand_is_seen_in_the_middle_of_an_event(kind, seed):
    episode = one_event(kind, seed)
    for phase in (0.25, 0.4, 0.6, 0.75):
        t_s = 2.0 + 2.0 * phase
        scene = scene_at(episode, t_s)
        assert len(scene.hands) == (2 if kind == 'swap' else 1)
        changed = difference(Renderer(episode, 96).frame(t_s),
                             at_rest(seed, scene.standing, t_s, 96)) > 25
        assert changed.mean() > 0.01


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(12))
def test_hands_move_smoothly_and_never_come_from_the_back(kind, seed):
    episode = one_event(kind, seed)
    times_s = np.arange(2.0, 4.0, 0.01)
    scenes = [scene_at(episode, t_s) for t_s in times_s]
    for before, scene in itertools.pairwise(scenes):
        for old, hand in zip(before.hands, scene.hands, strict=True):
            assert np.hypot(*np.subtract(old.xy, hand.xy)) < 0.06
            assert abs(old.lift - hand.lift) < 0.1
    for hand in scenes[0].hands:
        x, y = hand.shoulder_xy
        assert y > 0 and not (0 <= x <= 1 and y <= 1)
    assert scenes[0].standing == episode.initial
    assert scenes[-1].standing == episode.states[-1]
    names = {thing.name for scene in scenes for thing in scene.standing.present}
    held = {hand.holds.name for scene in scenes for hand in scene.hands
            if isinstance(hand.holds, Thing)}
    assert held == {'put': {BOX.name}, 'take': {STAR.name}, 'move': {CUP.name},
                    'swap': {CUP.name, STAR.name}}.get(kind, set())
    assert names <= {CUP.name, STAR.name, BALL.name, BOX.name}
    for scene in scenes:
        carried = [hand.holds for hand in scene.hands if isinstance(hand.holds, Thing)]
        assert not set(carried) & set(scene.standing.present)


def test_a_cover_hides_the_whole_thing():
    for seed, thing in itertools.product(SEEDS, (CUP, STAR, Thing('orange', 'ring'))):
        hidden = [at_rest(seed, table({4: one}, covered={4}), 3.0) for one in (thing, BALL)]
        assert np.array_equal(*hidden)
        open_, bare = at_rest(seed, table({4: thing}), 3.0), at_rest(seed, TableState(), 3.0)
        assert (difference(hidden[0], open_)[disc(192, 4)] > 25).mean() > 0.4
        assert (difference(hidden[0], bare)[disc(192, 4)] > 12).mean() > 0.4


@pytest.mark.parametrize('shape', SHAPES)
def test_a_cover_is_larger_than_every_thing(shape):
    for seed in range(8):
        thing, cover = (difference(at_rest(seed, table({4: Thing('blue', shape)}, covered), 3.0),
                                   at_rest(seed, TableState(), 3.0)) for covered in ((), {4}))
        # A thing's own pixels differ much more from the table than its shadow does; of a cover,
        # the silhouette counts, because parts of it are as grey as a table.
        rows, columns = np.nonzero(cover > 20)
        outline = cv2.convexHull(np.stack([columns, rows], axis=1).astype(np.int32))
        filled = cv2.fillConvexPoly(np.zeros((192, 192), np.uint8), outline, 1)
        assert not ((thing > 45) & (filled == 0)).any(), seed


def test_the_camera_is_unsteady_within_bounds():
    state = table({place: Thing('black', 'ball') for place in (0, 2, 4, 6, 8)})
    size_px = 480
    for seed in SEEDS[:2]:
        thing, bare = (Renderer(Episode(seed, 1e3, one, ()), size_px)
                       for one in (state, TableState()))
        shifts = []
        for t_s in np.arange(0, 120, 4.7):
            changed = (difference(thing.frame(t_s), bare.frame(t_s)) > 60).astype(np.uint8)
            _, _, _, middles = cv2.connectedComponentsWithStats(changed)
            found = [min(middles[1:], key=lambda at, p=p: np.hypot(*(at - p)))
                     for p in nominal_px(size_px)]
            shifts.append(np.subtract(found, nominal_px(size_px)))
        shifts = np.array(shifts)                                       # [time, ball, 2]
        # 3 px for the ball's own shading, which is the same for all balls.
        assert np.abs(shifts[:, 2]).max() <= 0.012 * size_px + 3
        assert np.ptp(shifts[:, 2], axis=0).min() > 2
        # Turn and zoom show in the diagonal from the first ball to the last.
        diagonal = shifts[:, 4] - shifts[:, 0] + np.ptp(nominal_px(size_px), axis=0)
        turns_deg = np.degrees(np.arctan2(diagonal[:, 1], diagonal[:, 0])) - 45
        zooms = np.hypot(*diagonal.T) / (np.sqrt(2) * size_px * 2 / 3)
        assert 0.3 < np.abs(turns_deg).max() <= 1.1
        assert 0.003 < np.abs(zooms - 1).max() <= 0.011


def nominal_px(size_px):
    return np.array([(x, y) for x, y in ((1, 1), (5, 1), (3, 3), (1, 5), (5, 5))]) * size_px / 6


def test_light_and_noise_change_but_mildly():
    for seed in SEEDS:
        renderer = Renderer(Episode(seed, 1e3, TableState(), ()), 96)
        means = [renderer.frame(t_s).mean(axis=(0, 1)) for t_s in np.arange(0, 1000, 9.1)]
        assert np.min(means) > 60 and np.max(means) < 190
        assert np.ptp(np.mean(means, axis=1)) > 4
        grain = renderer.frame(5.0).astype(float) - renderer.frame(5.001)
        assert 2.0 < grain.std() < 8.0


@pytest.mark.parametrize('kind', KINDS)
def test_visible_places_look_as_without_a_hand(kind):
    hidden = 0
    for seed, phase in itertools.product(range(4), (0.2, 0.35, 0.5, 0.65, 0.8)):
        episode = one_event(kind, seed)
        t_s = 2.0 + 2.0 * phase
        truth = truth_at(episode, t_s)
        changed = difference(Renderer(episode, 192).frame(t_s),
                             at_rest(seed, truth.standing, t_s))
        for place, visible in enumerate(truth.visible):
            if visible:
                # Only a soft shadow may fall there.
                assert (changed[disc(192, place)] > 40).mean() < 0.02, (seed, phase, place)
            else:
                hidden += 1
    assert hidden > 10


def test_truth_at_rest_and_in_an_event():
    episode = one_event('move')
    rest = truth_at(episode, 1.0)
    assert rest.visible == (True,) * 9 and rest.event is None
    assert rest.state == rest.standing == episode.initial
    busy = truth_at(episode, 3.0)
    assert busy.event == episode.events[0] and busy.state == episode.initial
    assert CUP not in busy.standing.things
    written = json.loads(json.dumps(busy.to_json()))
    assert written['event'] == {'number': 0, 'kind': 'move', 'start_s': 2.0, 'end_s': 4.0,
                                'thing': 'red cup', 'place': 'front center',
                                'from_place': 'back left', 'other': None}
    assert written['state']['back left'] == {'thing': 'red cup', 'covered': False}
    assert written['standing']['back left'] == {'thing': None, 'covered': False}
    assert set(written['visible']) == set(PLACES) and written['t_s'] == 3.0
    assert json.loads(json.dumps(truth_at(episode, 5.0).to_json()))['event'] is None
