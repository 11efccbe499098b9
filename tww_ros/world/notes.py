"""What there is to say about a tabletop stream, segment by segment: the perfect notes.

In: an Episode and the frames of each segment. Out: a Chronicle: per segment its note, and what is
known at its end. An event is told in the first segment that holds a frame without the hand, and
its time is the one that the segment's first timestamp shows, because that is what a model can
read. It knows nothing of pixels, questions or tokens.

    start: nothing | start: red ball center left, cover back right
    14 s: put red ball center left, 3 so far
    30 s: move red ball from center left to back right
    44 s: swap blue box to center left and red ball to front right
    51 s: cover | uncover red ball center left
    70 s: take red ball from center left
    nothing new

The time comes first, where it stands at a fixed distance from the timestamp that it is read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tww_ros.world.table import PLACES, Episode, Event, TableState

NOTHING_NEW = 'nothing new'


@dataclass(frozen=True)
class Seen:
    """An event, the segment in which it was seen to be over, and the time told for it."""

    event: Event
    segment: int
    at_s: int
    puts: int

    @property
    def text(self) -> str:
        """The event in words."""
        return event_text(self.event, self.puts)

    @property
    def note(self) -> str:
        """The event with its time."""
        return f'{self.at_s} s: {self.text}'


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
    """Everything on the table by place; a covered thing is just a cover."""
    told = [f'{"cover" if place in state.covered else thing.name} {PLACES[place]}'
            for place, thing in enumerate(state.things) if thing is not None]
    return ', '.join(told) or 'nothing'


def event_text(event: Event, puts: int) -> str:
    """One event in words; puts: how many things have been put down, this one counted."""
    name, place = event.thing.name, PLACES[event.place]
    if event.kind == 'put':
        return f'put {name} {place}, {puts} so far'
    if event.kind == 'move':
        return f'move {name} from {PLACES[event.from_place]} to {place}'
    if event.kind == 'swap':
        # In the order of the places: who was taken first cannot be seen.
        first, second = sorted([(event.place, name), (event.from_place, event.other.name)])
        return f'swap {first[1]} to {PLACES[first[0]]} and {second[1]} to {PLACES[second[0]]}'
    if event.kind == 'take':
        return f'take {name} from {place}'
    return f'{event.kind} {name} {place}'
