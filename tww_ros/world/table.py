"""The tabletop's ground truth: things at places, and what a hand does to them.

In: a seed. Out: an Episode, the events in order and the state of the table at any time. It knows
nothing of pixels (`world.scene`, `world.render`) nor of words (`world.notes`, `world.questions`).

Places are the nine fields of a 3 × 3 grid, row by row, the back row (top of the picture) first.
Times are seconds since the episode's start. Between two events the table rests for at least
`Pace.rest_s`, so that a camera at two frames per second sees every state.
"""

from __future__ import annotations

import bisect
import random
from dataclasses import dataclass, field
from functools import cached_property

COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'white', 'black')
SHAPES = ('ball', 'box', 'cone', 'star', 'ring', 'cup')
PLACES = ('back left', 'back center', 'back right',
          'center left', 'center', 'center right',
          'front left', 'front center', 'front right')
KINDS = ('put', 'move', 'swap', 'cover', 'uncover', 'take')
# Worlds for training and worlds for tests never share a seed.
TRAIN_SEEDS = range(1_000_000_000)
TEST_SEEDS = range(1_000_000_000, 2_000_000_000)


@dataclass(frozen=True, order=True)
class Thing:
    """One object; there is never a second one of its colour and shape."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        """'red ball'."""
        return f'{self.colour} {self.shape}'


THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class Event:
    """Something that a hand does; the hand is in the picture from start_s to end_s.

    place: where the thing stands afterwards ('take': where it stood). from_place: where it stood
    before ('move', 'swap'). other: the thing that goes to from_place ('swap').
    """

    number: int
    kind: str
    start_s: float
    end_s: float
    thing: Thing
    place: int
    from_place: int | None = None
    other: Thing | None = None

    def phase(self, t_s: float) -> float:
        """0 when the hand comes, 1 when it has gone."""
        return (t_s - self.start_s) / (self.end_s - self.start_s)


@dataclass(frozen=True)
class TableState:
    """What stands where; `covered` places hide their thing under a cover."""

    things: tuple[Thing | None, ...] = (None,) * len(PLACES)
    covered: frozenset[int] = frozenset()

    def place_of(self, thing: Thing) -> int | None:
        """Where it stands, covered or not; None when it is not on the table."""
        return self.things.index(thing) if thing in self.things else None

    @property
    def present(self) -> list[Thing]:
        """The things on the table, covered or not, by place."""
        return [thing for thing in self.things if thing is not None]

    @property
    def empty(self) -> list[int]:
        """Places where nothing stands."""
        return [place for place, thing in enumerate(self.things) if thing is None]

    @property
    def open(self) -> list[int]:
        """Places with a thing in plain view."""
        return [place for place, thing in enumerate(self.things)
                if thing is not None and place not in self.covered]

    def after(self, event: Event) -> TableState:
        """The state when the event is over."""
        things, covered = list(self.things), set(self.covered)
        if event.kind == 'put':
            things[event.place] = event.thing
        elif event.kind == 'take':
            things[event.place] = None
        elif event.kind in ('move', 'swap'):
            things[event.from_place], things[event.place] = event.other, event.thing
        elif event.kind == 'cover':
            covered.add(event.place)
        else:
            covered.discard(event.place)
        return TableState(tuple(things), frozenset(covered))


@dataclass(frozen=True)
class Pace:
    """How lively a world is. Times in seconds.

    Rest between two events: rest_s plus an exponential time of mean gap_s; one in `idle_share` is
    a long idle stretch of idle_s (from, to) instead.
    """

    rest_s: float = 1.4
    gap_s: float = 4.0
    idle_share: float = 0.06
    idle_s: tuple[float, float] = (10.0, 40.0)
    most_things: int = 6
    most_covers: int = 2
    # Things that stand on the table before the first frame: chance, and at most how many.
    furnished_share: float = 0.2
    most_furniture: int = 4
    # How often two things change places, against 2 for a move.
    swap_weight: float = 1.0
    # How many of the things that are put down are taken away again a second or two later.
    visit_share: float = 0.0


@dataclass(frozen=True)
class Episode:
    """One world from its start to duration_s."""

    seed: int
    duration_s: float
    initial: TableState
    events: tuple[Event, ...]
    # How lively it is; drawing does not depend on it.
    pace: Pace = field(default=Pace(), compare=False)

    @cached_property
    def states(self) -> tuple[TableState, ...]:
        """State before event 0, before event 1, …, and after the last."""
        states = [self.initial]
        for event in self.events:
            states.append(states[-1].after(event))
        return tuple(states)

    @cached_property
    def _ends_s(self) -> list[float]:
        return [event.end_s for event in self.events]

    def done(self, t_s: float) -> int:
        """Number of events that are over at t_s."""
        return bisect.bisect_right(self._ends_s, t_s)

    def state_at(self, t_s: float) -> TableState:
        """The resting state; while a hand is at work, the one before."""
        return self.states[self.done(t_s)]

    def event_at(self, t_s: float) -> Event | None:
        """The event under way, if any."""
        number = self.done(t_s)
        if number < len(self.events) and self.events[number].start_s <= t_s:
            return self.events[number]
        return None


def simulate(seed: int, duration_s: float, pace: Pace | None = None,
             initial: TableState | None = None) -> Episode:
    """The world of that seed; the same arguments give the same episode.

    initial: what stands there at the start; by default decided by the pace.
    """
    pace = pace or Pace()
    rng = random.Random(seed)
    start = initial or _furnish(rng, pace)
    state, events = start, []
    t_s = rng.uniform(1.0, 3.0)
    while True:
        event = _next_event(rng, pace, state, len(events), t_s)
        if event.end_s > duration_s:
            return Episode(seed, duration_s, start, tuple(events), pace)
        events.append(event)
        state = state.after(event)
        if event.kind == 'put' and pace.visit_share and rng.random() < pace.visit_share:
            event = _taken_again(rng, pace, event)
            if event.end_s > duration_s:
                return Episode(seed, duration_s, start, tuple(events), pace)
            events.append(event)
            state = state.after(event)
        long = rng.random() < pace.idle_share
        t_s = event.end_s + (rng.uniform(*pace.idle_s) if long
                             else pace.rest_s + rng.expovariate(1.0 / pace.gap_s))


def crowd(rng: random.Random, count: int, covers: int = 0) -> TableState:
    """A table with `count` random things, `covers` of them covered."""
    places = rng.sample(range(len(PLACES)), count)
    things: list[Thing | None] = [None] * len(PLACES)
    for place, thing in zip(places, rng.sample(THINGS, count), strict=True):
        things[place] = thing
    return TableState(tuple(things), frozenset(places[:covers]))


def _furnish(rng: random.Random, pace: Pace) -> TableState:
    if rng.random() >= pace.furnished_share:
        return TableState()
    return crowd(rng, rng.randint(1, pace.most_furniture))


def _taken_again(rng: random.Random, pace: Pace, put: Event) -> Event:
    start_s = put.end_s + pace.rest_s + rng.random()
    return Event(put.number + 1, 'take', start_s, start_s + rng.uniform(1.6, 2.4), put.thing,
                 put.place)


def _next_event(rng: random.Random, pace: Pace, state: TableState, number: int,
                start_s: float) -> Event:
    weights = {
        'put': 0.0 if len(state.present) >= pace.most_things else
        4.0 if len(state.present) < 3 else 2.0,
        'move': 2.0 if state.open else 0.0,
        'swap': pace.swap_weight if len(state.open) >= 2 else 0.0,
        'cover': 0.8 if state.open and len(state.covered) < pace.most_covers else 0.0,
        'uncover': 0.8 if state.covered else 0.0,
        'take': 1.5 if len(state.open) >= 2 else 0.0,
    }
    kind = rng.choices(list(weights), list(weights.values()))[0]
    lasts_s = rng.uniform(2.4, 3.2) if kind == 'swap' else (
        rng.uniform(2.0, 3.0) if kind == 'move' else rng.uniform(1.6, 2.4))
    end_s = start_s + lasts_s
    if kind == 'put':
        thing = rng.choice([thing for thing in THINGS if thing not in state.things])
        return Event(number, kind, start_s, end_s, thing, rng.choice(state.empty))
    if kind == 'uncover':
        place = rng.choice(sorted(state.covered))
        return Event(number, kind, start_s, end_s, state.things[place], place)
    place = rng.choice(state.open)
    thing = state.things[place]
    if kind == 'move':
        return Event(number, kind, start_s, end_s, thing, rng.choice(state.empty), place)
    if kind == 'swap':
        to = rng.choice([other for other in state.open if other != place])
        return Event(number, kind, start_s, end_s, thing, to, place, state.things[to])
    return Event(number, kind, start_s, end_s, thing, place)
