"""What there is to say about a tabletop stream, segment by segment: the perfect notes.

In: an Episode and the frames of each segment. Out: a Chronicle: per segment its note, and what is
known at its end. An event is told in the first segment that holds a frame without the hand, and
its time is the one that the segment's first timestamp shows, because that is what a model can
read. It knows nothing of pixels, questions or tokens.

    start: nothing | start: red ball center left, cover back right
    #3 red ball put center left at 14 s
    red ball moved back right from center left at 30 s
    blue box moved center left from back right at 44 s; red ball moved …       (two that swapped)
    red ball covered | uncovered back right at 51 s
    red ball taken back right at 70 s
    nothing new

What one asks by comes before what is asked for: the number, the thing, what happened to it, where
it is then, where it was before, and when. So to look something up is to find a token and to read
on from it, which is what attention learns first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tww_ros.world.table import PLACES, Episode, Event, TableState, Thing

NOTHING_NEW = 'nothing new'
_HAPPENED = {'put': 'put', 'cover': 'covered', 'uncover': 'uncovered', 'take': 'taken'}


@dataclass(frozen=True)
class Seen:
    """An event, the segment in which it was seen to be over, and the time told for it."""

    event: Event
    segment: int
    at_s: int
    puts: int

    @property
    def texts(self) -> tuple[str, ...]:
        """What happened, in words; two things that swapped have moved."""
        event = self.event
        if event.kind != 'swap':
            return (self.about(event.thing),)
        # In the order of the places: who was taken first cannot be seen.
        pair = sorted((event.thing, event.other), key=self.place_of)
        return tuple(self.about(thing) for thing in pair)

    @property
    def note(self) -> str:
        """What happened, with its time and with the number of what was put."""
        number = f'#{self.puts} ' if self.event.kind == 'put' else ''
        return '; '.join(f'{number}{text} at {self.at_s} s' for text in self.texts)

    @property
    def numbered(self) -> str:
        """What was put, with its number."""
        return f'#{self.puts} {self.texts[0]}'

    def about(self, thing: Thing) -> str:
        """What happened to this thing, in words."""
        place = PLACES[self.place_of(thing)]
        if self.event.kind in ('move', 'swap'):
            return f'{thing.name} moved {place} from {PLACES[self.place_before(thing)]}'
        return f'{thing.name} {_HAPPENED[self.event.kind]} {place}'

    def timed(self, thing: Thing) -> str:
        """The same with its time."""
        return f'{self.about(thing)} at {self.at_s} s'

    def place_of(self, thing: Thing) -> int:
        """Where the thing was when it was over (taken: where it had been)."""
        return self.event.from_place if self.event.other == thing else self.event.place

    def place_before(self, thing: Thing) -> int:
        """Where a thing was that was moved or swapped."""
        return self.event.place if self.event.other == thing else self.event.from_place


@dataclass
class Chronicle:
    """Everything told so far; grows segment by segment.

    notes: one per segment. seen: the events told. state: the table as told. now_s: the time of the
    newest frame, in the episode; clock_s: the same on the clock that the timestamps show.
    """

    episode: Episode
    notes: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    now_s: float = 0.0
    clock_s: float = 0.0

    @property
    def state(self) -> TableState:
        """The table after the events told."""
        return self.episode.states[len(self.seen)]

    @property
    def puts(self) -> int:
        """Things put down so far; what stood there at the start does not count."""
        return sum(seen.event.kind == 'put' for seen in self.seen)

    @property
    def settled(self) -> bool:
        """Whether no hand is at work in the newest frame, so that what is told is what is."""
        return self.episode.event_at(self.now_s) is None

    def add(self, stamps_s: Sequence[float], first_time_s: float) -> str:
        """The note of the next segment: its frames' times, and the time its first patch shows."""
        segment, self.now_s = len(self.notes), stamps_s[-1]
        # A timestamp is the mean of its patch's first and last frame.
        self.clock_s = first_time_s + (stamps_s[-1] - stamps_s[0]) / 2
        told = []
        for event in self.episode.events[len(self.seen):self.episode.done(self.now_s)]:
            self.seen.append(Seen(event, segment, int(first_time_s),
                                  self.puts + (event.kind == 'put')))
            told.append(self.seen[-1].note)
        if segment == 0:
            told.insert(0, f'start: {state_text(self.episode.initial)}')
        self.notes.append('; '.join(told) or NOTHING_NEW)
        return self.notes[-1]


def state_text(state: TableState) -> str:
    """Everything on the table, each thing with its place; a covered thing is just a cover."""
    return ', '.join(f'{name} {place}' for place, name in _shown(state)) or 'nothing'


def table_text(state: TableState) -> str:
    """The same, each place with what stands there."""
    return ', '.join(f'{place} {name}' for place, name in _shown(state)) or 'nothing'


def _shown(state: TableState) -> Iterator[tuple[str, str]]:
    """(place, what stands there), in the order of the places."""
    for place, thing in enumerate(state.things):
        if thing is not None:
            yield PLACES[place], 'cover' if place in state.covered else thing.name
