"""Questions about a tabletop stream with exact answers, from the ground truth.

In: a Chronicle (what has been seen so far) and a random generator. Out: TableQuestions, with the
answer, a short reasoning that cites the notes, and the segments that prove it. They follow the
families of the streaming benchmarks (StreamingBench, OVO-Bench):

    family      asks
    present     what is where, how many, now
    backward    what was first, where was it before, how many so far, when, how long ago
    forward     'tell me when …': 'not yet' until it is so
    premise     about what never was: the right answer says so
    follow-up   'and where is it now?': needs the rounds before it

A question is only made when its answer is unambiguous: 'which was put down first' needs two things
that were put down once each, 'how long ago' a time near one of the answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tww_ros.world.notes import Chronicle, Seen, state_text
from tww_ros.world.table import COLOURS, PLACES, SHAPES, THINGS, Thing

FAMILIES = ('present', 'backward', 'forward', 'premise', 'follow-up')
# Answer → seconds for which it is clearly right.
AGES_S = {'about 10 seconds': (7, 13), 'about 30 seconds': (24, 36), 'about 1 minute': (50, 70),
          'about 2 minutes': (100, 140), 'about 4 minutes': (200, 280)}
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


Maker = Callable[['Asker'], TableQuestion | None]
_MAKERS: dict[str, tuple[str, Maker]] = {}


def _kind(family: str) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        _MAKERS[maker.__name__.removeprefix('_ask_')] = (family, maker)
        return maker
    return register


class Asker:
    """Makes questions about one moment of one stream."""

    def __init__(self, chronicle: Chronicle, rng: random.Random) -> None:
        self.rng = rng
        self.seen = chronicle.seen
        self.state = chronicle.state
        self.initial = chronicle.episode.initial
        self.now_s = chronicle.clock_s
        # The reasoning about what can be seen now: to look is to spell the table out.
        self.in_view = f'now: {state_text(self.state)}'
        self.puts = [seen for seen in self.seen if seen.event.kind == 'put']
        self.known = list(dict.fromkeys(
            [*self.initial.present, *(seen.event.thing for seen in self.seen)]))

    def ask(self, kinds: tuple[str, ...] = ()) -> TableQuestion:
        """A question of a random kind (of these, if given) that has an answer now."""
        names = list(kinds or _MAKERS)
        for _ in range(1_000):
            question = self.make(self.rng.choice(names))
            if question is not None:
                return question
        return self.make('what_at')

    def make(self, kind: str) -> TableQuestion | None:
        """A question of this kind, or None when there is none now."""
        family, maker = _MAKERS[kind]
        made = maker(self)
        if made is None:
            return None
        return replace(made, kind=kind, family=made.family or family)

    def follow_up(self, subject: Thing) -> TableQuestion:
        """Something about 'it'."""
        rng = self.rng
        makers = [
            (['And where is it now?', 'And where is it?'], self.where(subject)),
            (['And where was it before?', 'And where was it before that?'], self.before(subject)),
            (['And when was it put down?'], self.when(subject)),
            (['And is it covered?'], self.is_covered(subject)),
            (['And is it still there?'], self.is_there(subject)),
        ]
        texts, question = rng.choice([(t, q) for t, q in makers if q is not None])
        return replace(question, text=rng.choice(texts), family='follow-up',
                       kind=f'and_{question.kind}')

    # What is known about one thing

    def of(self, thing: Thing) -> list[Seen]:
        """The events that concern a thing."""
        return [seen for seen in self.seen if thing in (seen.event.thing, seen.event.other)]

    def told(self, thing: Thing, seen: Seen | None) -> str:
        """The note to cite; without an event, what is known of the thing instead."""
        if seen is not None:
            return seen.text
        place = self.initial.place_of(thing)
        return (f'no {thing.name} was seen' if place is None
                else f'start: {thing.name} {PLACES[place]}')

    def place_after(self, thing: Thing, seen: Seen) -> int:
        """Where a thing was when the event was over (taken: where it had been)."""
        return seen.event.from_place if seen.event.other == thing else seen.event.place

    def where(self, thing: Thing) -> TableQuestion:
        """Where it is now."""
        events = self.of(thing)
        last = events[-1] if events else None
        place = self.state.place_of(thing)
        answer = PLACES[place] if place is not None else (
            TAKEN if thing in self.known else NEVER.format(thing.name))
        return TableQuestion(
            '', answer, 'present' if thing in self.known else 'premise', 'where',
            self.told(thing, last), self._proof(thing, last), subject=thing,
            others=(*PLACES, TAKEN))

    def before(self, thing: Thing) -> TableQuestion:
        """Where it was before its last move."""
        moves = [seen for seen in self.of(thing) if seen.event.kind in ('move', 'swap', 'take')]
        shifts = [seen for seen in moves if seen.event.kind != 'take']
        if thing not in self.known:
            return TableQuestion('', NEVER.format(thing.name), 'premise', 'before',
                                 self.told(thing, None), others=PLACES, subject=thing)
        if not shifts:
            events = self.of(thing)
            return TableQuestion('', NOT_MOVED, 'premise', 'before',
                                 self.told(thing, events[-1] if events else None),
                                 others=PLACES, subject=thing)
        last = shifts[-1]
        place = last.event.place if last.event.other == thing else last.event.from_place
        return TableQuestion('', PLACES[place], 'backward', 'before', last.text, (last.segment,),
                             subject=thing, others=(*PLACES, NOT_MOVED))

    def when(self, thing: Thing) -> TableQuestion:
        """When it was last put down."""
        puts = [seen for seen in self.puts if seen.event.thing == thing]
        if puts:
            others = [f'at {max(0, puts[-1].at_s + delta)} s' for delta in (-24, -12, 14, 26, 42)]
            return TableQuestion('', f'at {puts[-1].at_s} s', 'backward', 'when',
                                 f'{puts[-1].text}, at {puts[-1].at_s} s',
                                 (puts[-1].segment,), subject=thing, others=tuple(others))
        start = thing in self.known
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
        return self._yes(place in self.state.covered, 'present', 'is_covered',
                         self.told(thing, last), self._proof(thing, last), thing)

    def is_there(self, thing: Thing) -> TableQuestion:
        """Whether it is on the table now."""
        events = self.of(thing)
        last = events[-1] if events else None
        return self._yes(thing in self.state.things, 'present', 'is_there',
                         self.told(thing, last), self._proof(thing, last), thing)

    def _proof(self, thing: Thing, seen: Seen | None) -> tuple[int, ...]:
        if seen is not None:
            return (seen.segment,)
        return (0,) if thing in self.initial.things else ()

    def _yes(self, so: bool, family: str, kind: str, reasoning: str, proof: tuple[int, ...],
             subject: Thing | None = None) -> TableQuestion:
        return TableQuestion('', 'yes' if so else 'no', family, kind, reasoning, proof,
                             subject=subject, others=('yes', 'no'))

    # Random subjects

    def a_known(self) -> Thing | None:
        """A thing that has been seen."""
        return self.rng.choice(self.known) if self.known else None

    def a_thing(self, known_share: float = 0.7) -> Thing:
        """A thing, more often one that has been seen."""
        if self.known and self.rng.random() < known_share:
            return self.rng.choice(self.known)
        unknown = [thing for thing in THINGS if thing not in self.known]
        # Half of the strangers share colour or shape with something that was there.
        near = [thing for thing in unknown
                if any(thing.colour == k.colour or thing.shape == k.shape for k in self.known)]
        return self.rng.choice(near if near and self.rng.random() < 0.5 else unknown)

    def things_but(self, thing: Thing) -> tuple[str, ...]:
        """Names of other things, those seen before first in number."""
        strangers = self.rng.sample(THINGS, 4)
        return tuple(t.name for t in [*self.known, *strangers] if t != thing)


def _named(asker: Asker, texts: list[str], question: TableQuestion | None,
           **words: object) -> TableQuestion | None:
    if question is None:
        return None
    return replace(question, text=asker.rng.choice(texts).format(**words))


@_kind('present')
def _ask_where(asker: Asker) -> TableQuestion:
    thing = asker.a_thing(0.8)
    return _named(asker, ['Where is the {name}?', 'Where is the {name} now?',
                          'Where can I find the {name}?'], asker.where(thing), name=thing.name)


@_kind('present')
def _ask_what_at(asker: Asker) -> TableQuestion:
    place = asker.rng.randrange(len(PLACES))
    if asker.state.present and asker.rng.random() < 0.6:
        place = asker.state.place_of(asker.rng.choice(asker.state.present))
    thing = asker.state.things[place]
    answer = ('nothing' if thing is None else 'a cover' if place in asker.state.covered
              else thing.name)
    others = ('nothing', 'a cover', *(t.name for t in asker.rng.sample(THINGS, 6)))
    subject = thing if thing is not None and place not in asker.state.covered else None
    return _named(asker, ['What is at the {place}?', 'What stands at the {place} now?'],
                  TableQuestion('', answer, '', '', asker.in_view, subject=subject, others=others),
                  place=PLACES[place])


@_kind('present')
def _ask_how_many_now(asker: Asker) -> TableQuestion:
    count = len(asker.state.present)
    return _named(asker, ['How many objects are on the table?',
                          'How many objects are on the table now?'],
                  TableQuestion('', str(count), '', '', asker.in_view,
                                others=_near(asker.rng, count)))


@_kind('present')
def _ask_is_there(asker: Asker) -> TableQuestion:
    thing = asker.a_thing(0.65)
    return _named(asker, ['Is there a {name} on the table?', 'Is the {name} on the table now?'],
                  asker.is_there(thing), name=thing.name)


@_kind('present')
def _ask_colour_of(asker: Asker) -> TableQuestion | None:
    shown = [asker.state.things[place] for place in asker.state.open]
    alone = [thing for thing in shown
             if sum(other.shape == thing.shape for other in asker.state.present) == 1]
    if not alone:
        return None
    thing = asker.rng.choice(alone)
    return _named(asker, ['What colour is the {shape}?'],
                  TableQuestion('', thing.colour, '', '', asker.in_view, subject=thing,
                                others=COLOURS), shape=thing.shape)


@_kind('present')
def _ask_shape_of(asker: Asker) -> TableQuestion | None:
    shown = [asker.state.things[place] for place in asker.state.open]
    alone = [thing for thing in shown
             if sum(other.colour == thing.colour for other in asker.state.present) == 1]
    if not alone:
        return None
    thing = asker.rng.choice(alone)
    return _named(asker, ['What is the {colour} object?'],
                  TableQuestion('', thing.name, '', '', asker.in_view, subject=thing,
                                others=tuple(f'{thing.colour} {shape}' for shape in SHAPES)),
                  colour=thing.colour)


@_kind('present')
def _ask_is_covered(asker: Asker) -> TableQuestion | None:
    if not asker.state.present:
        return None
    covered = [asker.state.things[place] for place in asker.state.covered]
    pick = covered if covered and asker.rng.random() < 0.5 else asker.state.present
    thing = asker.rng.choice(pick)
    return _named(asker, ['Is the {name} covered?'], asker.is_covered(thing), name=thing.name)


@_kind('backward')
def _ask_first(asker: Asker) -> TableQuestion | None:
    if not asker.puts:
        return None
    first = asker.puts[0]
    thing = first.event.thing
    return _named(asker, ['Which object was put down first?', 'What was put down first?'],
                  TableQuestion('', thing.name, '', '', first.text, (first.segment,),
                                subject=thing, others=asker.things_but(thing)))


@_kind('backward')
def _ask_nth(asker: Asker) -> TableQuestion | None:
    if len(asker.puts) < 2:
        return None
    number = asker.rng.randint(2, min(5, len(asker.puts)))
    seen = asker.puts[number - 1]
    thing = seen.event.thing
    return _named(asker, ['Which object was put down as number {number}?'],
                  TableQuestion('', thing.name, '', '', seen.text, (seen.segment,), subject=thing,
                                others=asker.things_but(thing)), number=number)


@_kind('backward')
def _ask_last(asker: Asker) -> TableQuestion | None:
    kind, texts = asker.rng.choice([
        ('put', ['Which object was put down last?', 'What was put down last?']),
        ('take', ['Which object was taken away last?', 'What was taken away last?']),
        ('cover', ['Which object was covered last?']),
    ])
    happened = [seen for seen in asker.seen if seen.event.kind == kind]
    if not happened:
        return None
    thing = happened[-1].event.thing
    return _named(asker, texts,
                  TableQuestion('', thing.name, '', '', happened[-1].text,
                                (happened[-1].segment,), subject=thing,
                                others=asker.things_but(thing)))


@_kind('backward')
def _ask_before(asker: Asker) -> TableQuestion | None:
    moved = [seen.event.thing for seen in asker.seen if seen.event.kind in ('move', 'swap')]
    thing = (asker.rng.choice(moved) if moved and asker.rng.random() < 0.75
             else asker.a_thing(0.8))
    return _named(asker, ['Where was the {name} before it was moved?',
                          'Where was the {name} before?'], asker.before(thing), name=thing.name)


@_kind('backward')
def _ask_so_far(asker: Asker) -> TableQuestion:
    count = len(asker.puts)
    last = asker.puts[-1] if count else None
    return _named(asker, ['How many objects have been put down so far?',
                          'How many objects were put down?'],
                  TableQuestion('', str(count), '', '', last.text if last else 'nothing was put',
                                (last.segment,) if last else (),
                                others=_near(asker.rng, count)))


@_kind('backward')
def _ask_order(asker: Asker) -> TableQuestion | None:
    once = [seen for seen in asker.puts
            if sum(other.event.thing == seen.event.thing for other in asker.puts) == 1
            and seen.event.thing not in asker.initial.things]
    if len(once) < 2:
        return None
    early, late = sorted(asker.rng.sample(once, 2), key=lambda seen: seen.segment)
    pair = [early.event.thing.name, late.event.thing.name]
    asker.rng.shuffle(pair)
    return _named(asker, ['Which was put down first, the {a} or the {b}?',
                          'Which came first, the {a} or the {b}?'],
                  TableQuestion('', early.event.thing.name, '', '', early.text,
                                (early.segment, late.segment), subject=early.event.thing,
                                others=tuple(pair)), a=pair[0], b=pair[1])


@_kind('backward')
def _ask_ever(asker: Asker) -> TableQuestion:
    thing = asker.a_thing(0.5)
    events = asker.of(thing)
    first = events[0] if events else None
    so = thing in asker.known
    question = asker._yes(so, 'backward' if so else 'premise', '', asker.told(thing, first),
                          asker._proof(thing, first), thing if so else None)
    return _named(asker, ['Has there ever been a {name}?', 'Did you ever see a {name}?'],
                  question, name=thing.name)


@_kind('backward')
def _ask_how_long_ago(asker: Asker) -> TableQuestion | None:
    fitting = []
    for seen in asker.puts:
        latest = [s for s in asker.puts if s.event.thing == seen.event.thing][-1]
        age_s = int(asker.now_s) - seen.at_s
        fitting += [(seen, text) for text, (low, high) in AGES_S.items()
                    if seen is latest and low <= age_s <= high]
    if not fitting:
        return None
    seen, text = asker.rng.choice(fitting)
    thing = seen.event.thing
    return _named(asker, ['How long ago was the {name} put down?'],
                  TableQuestion('', text, '', '',
                                f'{seen.text}, at {seen.at_s} s, now {int(asker.now_s)} s',
                                (seen.segment,), subject=thing, others=tuple(AGES_S)),
                  name=thing.name)


@_kind('backward')
def _ask_when(asker: Asker) -> TableQuestion:
    thing = asker.a_thing(0.9)
    return _named(asker, ['When was the {name} put down?'], asker.when(thing), name=thing.name)


@_kind('backward')
def _ask_under(asker: Asker) -> TableQuestion | None:
    if not asker.state.covered:
        return None
    place = asker.rng.choice(sorted(asker.state.covered))
    thing = asker.state.things[place]
    events = asker.of(thing)
    last = events[-1] if events else None
    return _named(asker, ['What is under the cover at the {place}?'],
                  TableQuestion('', thing.name, '', '', asker.told(thing, last),
                                asker._proof(thing, last), subject=thing,
                                others=asker.things_but(thing)), place=PLACES[place])


@_kind('backward')
def _ask_last_place(asker: Asker) -> TableQuestion | None:
    gone = [thing for thing in asker.known if thing not in asker.state.things]
    if not gone:
        return None
    thing = asker.rng.choice(gone)
    last = asker.of(thing)[-1]
    return _named(asker, ['Where did you last see the {name}?',
                          'Where was the {name} when it was taken away?'],
                  TableQuestion('', PLACES[last.event.place], '', '', last.text, (last.segment,),
                                subject=thing, others=PLACES), name=thing.name)


@_kind('forward')
def _ask_tell_me(asker: Asker) -> TableQuestion:
    rng, state = asker.rng, asker.state
    what = rng.choice(('gone', 'there', 'place', 'count', 'covered'))
    thing = asker.a_thing(0.8)
    if what == 'gone' and asker.known:
        thing = asker.a_known()
        text, so = f'Tell me when the {thing.name} is gone.', thing not in state.things
    elif what == 'place':
        place = rng.randrange(len(PLACES))
        text, so = (f'Tell me when something is at the {PLACES[place]}.',
                    state.things[place] is not None)
        thing = None
    elif what == 'count':
        count = max(1, len(state.present) + rng.randint(-1, 2))
        text, so = (f'Tell me when there are {count} objects on the table.',
                    len(state.present) >= count)
        thing = None
    elif what == 'covered' and state.present:
        thing = rng.choice(state.present)
        text, so = (f'Tell me when the {thing.name} is covered.',
                    state.place_of(thing) in state.covered)
    else:
        text, so = f'Tell me when the {thing.name} is on the table.', thing in state.things
    if thing is None:
        reasoning, proof = asker.in_view, ()
    else:
        events = asker.of(thing)
        last = events[-1] if events else None
        reasoning, proof = asker.told(thing, last), asker._proof(thing, last)
    return TableQuestion(text, 'it is so now' if so else 'not yet', '', '', reasoning, proof,
                         others=('it is so now', 'not yet'))


KINDS = tuple(_MAKERS)
KINDS_OF = {family: tuple(name for name, (of, _) in _MAKERS.items() if of == family)
            for family in FAMILIES}


def _near(rng: random.Random, count: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(max(0, count - 3), count + 4) if n != count)
