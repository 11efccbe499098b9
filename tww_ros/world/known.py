"""What is known at one moment of a tabletop stream, and the questions that one thing answers.

In: a Chronicle (what has been seen so far) and a random generator. Out: TableQuestions without
their words (`world.questions` finds some): the exact answer, a short reasoning that cites the
notes, and the segments that prove it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tww_ros.world.notes import Chronicle, Seen, table_text
from tww_ros.world.table import PLACES, THINGS, Thing

NEVER = 'there was no {}'
TAKEN = 'it was taken away'
NOT_MOVED = 'it was not moved'
FROM_START = 'it was there from the start'


@dataclass(frozen=True)
class TableQuestion:
    """One question and all that is known about it.

    proof: segments that hold what is needed; empty when the newest frames (or nothing at all) do.
    subject: the thing that a follow-up may call 'it'. choices: empty for an open question.
    """

    text: str
    answer: str
    family: str
    kind: str
    reasoning: str = ''
    proof: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    subject: Thing | None = None
    # Texts of the same kind that are wrong here, for choices.
    others: tuple[str, ...] = ()

    def with_choices(self, rng: random.Random, most: int = 4) -> TableQuestion:
        """The same as a multiple-choice question."""
        wrong = list(dict.fromkeys(text for text in self.others if text != self.answer))
        choices = [self.answer, *rng.sample(wrong, min(most - 1, len(wrong)))]
        rng.shuffle(choices)
        return replace(self, choices=tuple(choices))


class Known:
    """One moment of one stream."""

    def __init__(self, chronicle: Chronicle, rng: random.Random) -> None:
        self.rng = rng
        self.seen = chronicle.seen
        self.state = chronicle.state
        self.initial = chronicle.episode.initial
        self.now_s = chronicle.clock_s
        # The reasoning about what can be seen now: to look is to spell the table out.
        self.in_view = f'now: {table_text(self.state)}'
        self.puts = [seen for seen in self.seen if seen.event.kind == 'put']
        self.things = list(dict.fromkeys(
            [*self.initial.present, *(seen.event.thing for seen in self.seen)]))

    # What is known about one thing

    def of(self, thing: Thing) -> list[Seen]:
        """The events that concern a thing."""
        return [seen for seen in self.seen if thing in (seen.event.thing, seen.event.other)]

    def told(self, thing: Thing, seen: Seen | None) -> str:
        """The note to cite; without an event, what is known of the thing instead."""
        if seen is not None:
            return seen.about(thing)
        place = self.initial.place_of(thing)
        return (f'{thing.name} never seen' if place is None
                else f'{thing.name} {PLACES[place]} from the start')

    def looked_at(self, place: int) -> str:
        """The reasoning about what can be seen at one place: the table, and then what is there."""
        thing = self.state.things[place]
        shown = ('nothing' if thing is None else 'cover' if place in self.state.covered
                 else thing.name)
        return f'{self.in_view}; {PLACES[place]} {shown}'

    def where(self, thing: Thing) -> TableQuestion:
        """Where it is now."""
        events = self.of(thing)
        last = events[-1] if events else None
        place = self.state.place_of(thing)
        answer = PLACES[place] if place is not None else (
            TAKEN if thing in self.things else NEVER.format(thing.name))
        return TableQuestion(
            '', answer, 'present' if thing in self.things else 'premise', 'where',
            self.told(thing, last), self.proof(thing, last), subject=thing,
            others=(*PLACES, TAKEN))

    def before(self, thing: Thing) -> TableQuestion:
        """Where it was before its last move."""
        moves = [seen for seen in self.of(thing) if seen.event.kind in ('move', 'swap', 'take')]
        shifts = [seen for seen in moves if seen.event.kind != 'take']
        if thing not in self.things:
            return TableQuestion('', NEVER.format(thing.name), 'premise', 'before',
                                 self.told(thing, None), others=PLACES, subject=thing)
        if not shifts:
            events = self.of(thing)
            return TableQuestion('', NOT_MOVED, 'premise', 'before',
                                 self.told(thing, events[-1] if events else None),
                                 others=PLACES, subject=thing)
        last = shifts[-1]
        return TableQuestion('', PLACES[last.place_before(thing)], 'backward', 'before',
                             last.about(thing), (last.segment,), subject=thing,
                             others=(*PLACES, NOT_MOVED))

    def when(self, thing: Thing) -> TableQuestion:
        """When it was last put down."""
        puts = [seen for seen in self.puts if seen.event.thing == thing]
        if puts:
            others = [f'at {max(0, puts[-1].at_s + delta)} s' for delta in (-24, -12, 14, 26, 42)]
            return TableQuestion('', f'at {puts[-1].at_s} s', 'backward', 'when',
                                 puts[-1].timed(thing), (puts[-1].segment,), subject=thing,
                                 others=tuple(others))
        start = thing in self.things
        others = tuple(f'at {second} s' for second in (4, 16, 30))
        return TableQuestion('', FROM_START if start else NEVER.format(thing.name),
                             'backward' if start else 'premise', 'when', self.told(thing, None),
                             (0,) if start else (), subject=thing, others=others)

    def is_covered(self, thing: Thing) -> TableQuestion | None:
        """Whether a thing on the table is under a cover."""
        place = self.state.place_of(thing)
        if place is None:
            return None
        events = self.of(thing)
        last = events[-1] if events else None
        return self.yes_or_no(place in self.state.covered, 'present', 'is_covered',
                              self.told(thing, last), self.proof(thing, last), thing)

    def is_there(self, thing: Thing) -> TableQuestion:
        """Whether it is on the table now."""
        events = self.of(thing)
        last = events[-1] if events else None
        return self.yes_or_no(thing in self.state.things, 'present', 'is_there',
                              self.told(thing, last), self.proof(thing, last), thing)

    def proof(self, thing: Thing, seen: Seen | None) -> tuple[int, ...]:
        """The segment of the event; without one, of the start when the thing was there."""
        if seen is not None:
            return (seen.segment,)
        return (0,) if thing in self.initial.things else ()

    def yes_or_no(self, so: bool, family: str, kind: str, reasoning: str, proof: tuple[int, ...],
                  subject: Thing | None = None) -> TableQuestion:
        """A question whose answer is yes or no."""
        return TableQuestion('', 'yes' if so else 'no', family, kind, reasoning, proof,
                             subject=subject, others=('yes', 'no'))

    # Random subjects

    def a_known(self) -> Thing | None:
        """A thing that has been seen."""
        return self.rng.choice(self.things) if self.things else None

    def a_thing(self, known_share: float = 0.7) -> Thing:
        """A thing, more often one that has been seen."""
        if self.things and self.rng.random() < known_share:
            return self.rng.choice(self.things)
        unknown = [thing for thing in THINGS if thing not in self.things]
        # Half of the strangers share colour or shape with something that was there.
        near = [thing for thing in unknown
                if any(thing.colour == k.colour or thing.shape == k.shape for k in self.things)]
        return self.rng.choice(near if near and self.rng.random() < 0.5 else unknown)

    def things_but(self, thing: Thing) -> tuple[str, ...]:
        """Names of other things, those seen before first in number."""
        strangers = self.rng.sample(THINGS, 4)
        return tuple(t.name for t in [*self.things, *strangers] if t != thing)
