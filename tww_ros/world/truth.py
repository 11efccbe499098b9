"""What there is to know about one frame: the table's state, the event under way, what is in view.

In: an Episode and a time. Out: FrameTruth. It knows nothing of pixels; what a hand hides follows
from where `world.scene` puts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tww_ros.world.scene import (
    ARM_RADIUS,
    COVER_RADIUS,
    PLACE_XY,
    THING_RADIUS,
    XY,
    Cover,
    Hand,
    scene_at,
)
from tww_ros.world.table import PLACES, Episode, Event, TableState, Thing


@dataclass(frozen=True)
class FrameTruth:
    """One frame's truth.

    state: while a hand is at work, the one before. standing: what stands on the table in this
    very frame, without what a hand holds. event: the one under way. visible: for each place,
    whether it is free of hands, arms and things being carried; a cover counts as visible, what is
    under it is not asked.
    """

    t_s: float
    state: TableState
    standing: TableState
    event: Event | None
    visible: tuple[bool, ...]

    def to_json(self) -> dict[str, object]:
        """Only str, float, int, bool, list, dict and None; things and places by their names."""
        return {
            't_s': self.t_s,
            'state': _state_json(self.state),
            'standing': _state_json(self.standing),
            'visible': dict(zip(PLACES, self.visible, strict=True)),
            'event': None if self.event is None else _event_json(self.event),
        }


def truth_at(episode: Episode, t_s: float) -> FrameTruth:
    """The truth about the frame at t_s."""
    scene = scene_at(episode, t_s)
    visible = tuple(not any(_hides(hand, xy) for hand in scene.hands) for xy in PLACE_XY)
    return FrameTruth(t_s, episode.state_at(t_s), scene.standing, episode.event_at(t_s), visible)


def _state_json(state: TableState) -> dict[str, dict[str, object]]:
    return {name: {'thing': _name(thing), 'covered': place in state.covered}
            for place, (name, thing) in enumerate(zip(PLACES, state.things, strict=True))}


def _event_json(event: Event) -> dict[str, object]:
    return {'number': event.number, 'kind': event.kind, 'start_s': event.start_s,
            'end_s': event.end_s, 'thing': _name(event.thing), 'place': PLACES[event.place],
            'from_place': None if event.from_place is None else PLACES[event.from_place],
            'other': _name(event.other)}


def _name(thing: Thing | None) -> str | None:
    return None if thing is None else thing.name


def _hides(hand: Hand, xy: XY) -> bool:
    """Whether the hand, its arm or what it holds lies over a thing at xy."""
    if _distance(xy, hand.xy, hand.shoulder_xy) < ARM_RADIUS + THING_RADIUS:
        return True
    held = 0.0 if hand.holds is None else (
        COVER_RADIUS if isinstance(hand.holds, Cover) else THING_RADIUS)
    return math.dist(xy, hand.xy) < held + THING_RADIUS


def _distance(xy: XY, start: XY, end: XY) -> float:
    """From a point to the line between two others."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((xy[0] - start[0]) * dx + (xy[1] - start[1]) * dy) / (dx * dx + dy * dy)
    along = min(1.0, max(0.0, along))
    return math.dist(xy, (start[0] + along * dx, start[1] + along * dy))
