"""What is where in the picture at any moment: an Episode and a time become a Scene.

In: an Episode and a time. Out: what stands on the table, and the hands with what they carry. It
knows nothing of pixels (`world.render`).

Positions are in table units: x to the right and y to the front, the picture is 0..1 in both, and
the middles of the nine places lie at 1/6, 1/2 and 5/6. Hands reach in from the front, the left or
the right, never from the back. Everything about a hand's way follows from (episode.seed,
event.number), so any moment can be asked for in any order.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass

from tww_ros.world.table import PLACES, Episode, Event, TableState, Thing

XY = tuple[float, float]

PLACE_WIDTH = 1 / 3
PLACE_XY: tuple[XY, ...] = tuple(
    ((place % 3 + 0.5) * PLACE_WIDTH, (place // 3 + 0.5) * PLACE_WIDTH)
    for place in range(len(PLACES)))
THING_RADIUS = 0.125
COVER_RADIUS = 0.152
# Half the width of a hand with its thumb; the arm behind it is slimmer.
ARM_RADIUS = 0.105
# A hand starts so far outside that neither it nor a cover in it shows.
_OUTSIDE = 0.25
# Where a visit ends, beyond the picture's edge: while something of the hand, or of what it holds,
# still shows, so that it can be seen whether it is over.
_LEAVES_EMPTY, _LEAVES_WITH_THING, _LEAVES_WITH_COVER = -0.08, 0.04, 0.08
# Shoulders, so far from the picture that an arm hardly turns.
_SHOULDER = 1.1
# Two things that change places pass each other at twice this distance.
_SWAP_BOW = 0.14
# Phases of a visit with one place: it comes, holds still around the middle, goes.
_SET_DOWN = (0.0, 0.45, 0.55, 1.0)
# … with two places: comes, holds still, carries, holds still, goes.
_CARRY = (0.0, 0.27, 0.34, 0.66, 0.73, 1.0)
# How much of the phase a thing takes to rise or to sink.
_LIFT = 0.12


@dataclass(frozen=True)
class Cover:
    """The grey dome that hides a thing, where a hand holds it."""


@dataclass(frozen=True)
class Hand:
    """One hand and its arm.

    xy: middle of the grip, which is the middle of what it holds. shoulder_xy: outside the
    picture; the arm is the straight line from there. lift: 0 when what it holds stands on the
    table, 1 when it is carried. is_left: which way the thumb is.
    """

    xy: XY
    shoulder_xy: XY
    holds: Thing | Cover | None
    lift: float
    is_left: bool


@dataclass(frozen=True)
class Scene:
    """standing: what stands on the table, without what a hand holds. hands: none, one or two."""

    standing: TableState
    hands: tuple[Hand, ...] = ()


@dataclass(frozen=True)
class _Visit:
    """What one hand does in an event: its way in, its places, its way out."""

    outside_xy: XY
    leaves_xy: XY
    shoulder_xy: XY
    stops: tuple[int, ...]
    holds: Thing | Cover
    bow: float
    is_left: bool


def scene_at(episode: Episode, t_s: float) -> Scene:
    """What is drawn at t_s."""
    event = episode.event_at(t_s)
    state = episode.state_at(t_s)
    if event is None:
        return Scene(state)
    phase = event.phase(t_s)
    hands = tuple(_hand(visit, event.kind, phase) for visit in _visits(episode.seed, event))
    return Scene(_standing(state, event, hands, phase), hands)


def _standing(state: TableState, event: Event, hands: tuple[Hand, ...],
              phase: float) -> TableState:
    """Before the grasp all is as before the event; after the release, as afterwards."""
    if all(hand.holds is None for hand in hands):
        return state if phase < 0.5 else state.after(event)
    if event.kind == 'cover':
        return state
    if event.kind == 'uncover':
        return state.after(event)
    gone = {event.thing, event.other}
    return TableState(tuple(None if thing in gone else thing for thing in state.things),
                      state.covered)


@functools.lru_cache(maxsize=4096)
def _visits(seed: int, event: Event) -> tuple[_Visit, ...]:
    rng = random.Random(f'{seed}:{event.number}')
    places = (event.place,) if event.from_place is None else (event.from_place, event.place)
    sides = _sides(rng, places)
    holds = Cover() if event.kind in ('cover', 'uncover') else event.thing
    if event.kind == 'swap':
        return (_visit(rng, sides[0], places, holds, _SWAP_BOW),
                _visit(rng, sides[1], places[::-1], event.other, _SWAP_BOW))
    leaves_with = holds if event.kind in ('take', 'uncover') else None
    return (_visit(rng, sides[0], places, holds, rng.uniform(-0.06, 0.06), leaves_with),)


def _sides(rng: random.Random, places: tuple[int, ...]) -> list[str]:
    """Sides to come from, best first: those of a short reach, shuffled, then the others."""
    def reach(side: str) -> float:
        distances = {'front': lambda xy: 1 - xy[1], 'left': lambda xy: xy[0],
                     'right': lambda xy: 1 - xy[0]}
        return max(distances[side](PLACE_XY[place]) for place in places)

    sides = ['front', 'left', 'right']
    rng.shuffle(sides)
    shortest = min(map(reach, sides))
    return sorted(sides, key=lambda side: reach(side) > shortest + PLACE_WIDTH + 1e-6)


def _visit(rng: random.Random, side: str, stops: tuple[int, ...], holds: Thing | Cover,
           bow: float, leaves_with: Thing | Cover | None = None) -> _Visit:
    x, y = (sum(PLACE_XY[place][axis] for place in stops) / len(stops) for axis in range(2))
    is_left = rng.random() < 0.5 if side == 'front' else side == 'left'
    beyond = (_LEAVES_EMPTY if leaves_with is None else
              _LEAVES_WITH_COVER if isinstance(leaves_with, Cover) else _LEAVES_WITH_THING)
    if side == 'front':
        x += rng.uniform(-0.12, 0.12)
        return _Visit((x, 1 + _OUTSIDE), (x, 1 + beyond),
                      (x + rng.uniform(-0.2, 0.2), 1 + _SHOULDER), stops, holds, bow, is_left)
    edge, out = (0.0, -1) if side == 'left' else (1.0, 1)
    y += rng.uniform(0.0, 0.15)
    return _Visit((edge + out * _OUTSIDE, y), (edge + out * beyond, y),
                  (edge + out * _SHOULDER, y + rng.uniform(0.0, 0.3)), stops, holds, bow, is_left)


def _hand(visit: _Visit, kind: str, phase: float) -> Hand:
    first, last = PLACE_XY[visit.stops[0]], PLACE_XY[visit.stops[-1]]
    if len(visit.stops) == 1:
        comes, stays, goes, gone = _SET_DOWN
        brings = kind in ('put', 'cover')
        middle = (stays + goes) / 2
        holding = phase < middle if brings else phase >= middle
        lift = (middle - phase if brings else phase - middle) / _LIFT
        if phase < goes:
            xy = _between(visit.outside_xy, first, _arrival(comes, stays, phase))
        else:
            xy = _between(visit.leaves_xy, first, _arrival(gone, goes, phase))
    else:
        comes, stays, carries, arrives, goes, gone = _CARRY
        grasp, release = (stays + carries) / 2, (arrives + goes) / 2
        holding = grasp <= phase < release
        lift = min(phase - grasp, release - phase) / _LIFT
        if phase < carries:
            xy = _between(visit.outside_xy, first, _arrival(comes, stays, phase))
        elif phase < goes:
            xy = _between(first, last, _ease(carries, arrives, phase), visit.bow)
        else:
            xy = _between(visit.leaves_xy, last, _arrival(gone, goes, phase))
    lift = _ease(0.0, 1.0, lift) if holding else 0.0
    return Hand(xy, visit.shoulder_xy, visit.holds if holding else None, lift, visit.is_left)


def _ease(start: float, end: float, phase: float) -> float:
    """0 before start, 1 after end, smooth between."""
    u = min(1.0, max(0.0, (phase - start) / (end - start)))
    return u * u * (3 - 2 * u)


def _arrival(start: float, end: float, phase: float) -> float:
    """Like _ease, but fast at the start, which is outside the picture; start may be the later."""
    u = min(1.0, max(0.0, (phase - start) / (end - start)))
    return u * (2 - u)


def _between(start: XY, end: XY, u: float, bow: float = 0.0) -> XY:
    """The point at u on the way, bent to the right of the direction of travel by up to bow."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    side = bow * math.sin(math.pi * u) / (math.hypot(dx, dy) or 1.0)
    return start[0] + u * dx - side * dy, start[1] + u * dy + side * dx
