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
from dataclasses import replace

from tww_ros.world.known import Known, TableQuestion
from tww_ros.world.table import COLOURS, PLACES, SHAPES, THINGS, Thing

FAMILIES = ('present', 'backward', 'forward', 'premise', 'follow-up')
# Answer → seconds for which it is clearly right.
AGES_S = {'about 10 seconds': (7, 13), 'about 30 seconds': (24, 36), 'about 1 minute': (50, 70),
          'about 2 minutes': (100, 140), 'about 4 minutes': (200, 280)}

Maker = Callable[[Known], TableQuestion | None]
_MAKERS: dict[str, tuple[str, Maker]] = {}


def _kind(family: str) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        _MAKERS[maker.__name__.removeprefix('_ask_')] = (family, maker)
        return maker
    return register


def _named(known: Known, texts: list[str], question: TableQuestion | None,
           **words: object) -> TableQuestion | None:
    if question is None:
        return None
    return replace(question, text=known.rng.choice(texts).format(**words))


@_kind('present')
def _ask_where(known: Known) -> TableQuestion:
    thing = known.a_thing(0.8)
    return _named(known, ['Where is the {name}?', 'Where is the {name} now?',
                          'Where can I find the {name}?'], known.where(thing), name=thing.name)


@_kind('present')
def _ask_what_at(known: Known) -> TableQuestion:
    place = known.rng.randrange(len(PLACES))
    if known.state.present and known.rng.random() < 0.6:
        place = known.state.place_of(known.rng.choice(known.state.present))
    thing = known.state.things[place]
    answer = ('nothing' if thing is None else 'a cover' if place in known.state.covered
              else thing.name)
    others = ('nothing', 'a cover', *(t.name for t in known.rng.sample(THINGS, 6)))
    subject = thing if thing is not None and place not in known.state.covered else None
    return _named(known, ['What is at the {place}?', 'What stands at the {place} now?'],
                  TableQuestion('', answer, '', '', known.looked_at(place), subject=subject,
                                others=others), place=PLACES[place])


@_kind('present')
def _ask_how_many_now(known: Known) -> TableQuestion:
    count = len(known.state.present)
    return _named(known, ['How many objects are on the table?',
                          'How many objects are on the table now?'],
                  TableQuestion('', str(count), '', '', known.in_view,
                                others=_near(known.rng, count)))


@_kind('present')
def _ask_is_there(known: Known) -> TableQuestion:
    thing = known.a_thing(0.65)
    return _named(known, ['Is there a {name} on the table?', 'Is the {name} on the table now?'],
                  known.is_there(thing), name=thing.name)


@_kind('present')
def _ask_colour_of(known: Known) -> TableQuestion | None:
    shown = [known.state.things[place] for place in known.state.open]
    alone = [thing for thing in shown
             if sum(other.shape == thing.shape for other in known.state.present) == 1]
    if not alone:
        return None
    thing = known.rng.choice(alone)
    return _named(known, ['What colour is the {shape}?'],
                  TableQuestion('', thing.colour, '', '', f'{known.in_view}; {thing.name}',
                                subject=thing, others=COLOURS), shape=thing.shape)


@_kind('present')
def _ask_shape_of(known: Known) -> TableQuestion | None:
    shown = [known.state.things[place] for place in known.state.open]
    alone = [thing for thing in shown
             if sum(other.colour == thing.colour for other in known.state.present) == 1]
    if not alone:
        return None
    thing = known.rng.choice(alone)
    return _named(known, ['What is the {colour} object?'],
                  TableQuestion('', thing.name, '', '', known.in_view, subject=thing,
                                others=tuple(f'{thing.colour} {shape}' for shape in SHAPES)),
                  colour=thing.colour)


@_kind('present')
def _ask_is_covered(known: Known) -> TableQuestion | None:
    if not known.state.present:
        return None
    covered = [known.state.things[place] for place in known.state.covered]
    pick = covered if covered and known.rng.random() < 0.5 else known.state.present
    thing = known.rng.choice(pick)
    return _named(known, ['Is the {name} covered?'], known.is_covered(thing), name=thing.name)


@_kind('backward')
def _ask_first(known: Known) -> TableQuestion | None:
    if not known.puts:
        return None
    first = known.puts[0]
    thing = first.event.thing
    return _named(known, ['Which object was put down first?', 'What was put down first?'],
                  TableQuestion('', thing.name, '', '', first.numbered, (first.segment,),
                                subject=thing, others=known.things_but(thing)))


@_kind('backward')
def _ask_nth(known: Known) -> TableQuestion | None:
    if len(known.puts) < 2:
        return None
    number = known.rng.randint(2, min(5, len(known.puts)))
    seen = known.puts[number - 1]
    thing = seen.event.thing
    return _named(known, ['Which object was put down as number {number}?'],
                  TableQuestion('', thing.name, '', '', seen.numbered, (seen.segment,),
                                subject=thing, others=known.things_but(thing)), number=number)


@_kind('backward')
def _ask_last(known: Known) -> TableQuestion | None:
    kind, texts = known.rng.choice([
        ('put', ['Which object was put down last?', 'What was put down last?']),
        ('take', ['Which object was taken away last?', 'What was taken away last?']),
        ('cover', ['Which object was covered last?']),
    ])
    happened = [seen for seen in known.seen if seen.event.kind == kind]
    if not happened:
        return None
    last = happened[-1]
    thing = last.event.thing
    return _named(known, texts,
                  TableQuestion('', thing.name, '', '',
                                last.numbered if kind == 'put' else last.about(thing),
                                (last.segment,), subject=thing,
                                others=known.things_but(thing)))


@_kind('backward')
def _ask_before(known: Known) -> TableQuestion | None:
    moved = [seen.event.thing for seen in known.seen if seen.event.kind in ('move', 'swap')]
    thing = (known.rng.choice(moved) if moved and known.rng.random() < 0.75
             else known.a_thing(0.8))
    return _named(known, ['Where was the {name} before it was moved?',
                          'Where was the {name} before?'], known.before(thing), name=thing.name)


@_kind('backward')
def _ask_so_far(known: Known) -> TableQuestion:
    count = len(known.puts)
    last = known.puts[-1] if count else None
    return _named(known, ['How many objects have been put down so far?',
                          'How many objects were put down?'],
                  TableQuestion('', str(count), '', '', last.numbered if last else 'nothing put',
                                (last.segment,) if last else (),
                                others=_near(known.rng, count)))


@_kind('backward')
def _ask_order(known: Known) -> TableQuestion | None:
    once = [seen for seen in known.puts
            if sum(other.event.thing == seen.event.thing for other in known.puts) == 1
            and seen.event.thing not in known.initial.things]
    if len(once) < 2:
        return None
    early, late = sorted(known.rng.sample(once, 2), key=lambda seen: seen.segment)
    either = [early, late]
    known.rng.shuffle(either)
    pair = [seen.event.thing.name for seen in either]
    told = [seen.timed(seen.event.thing) for seen in either]
    return _named(known, ['Which was put down first, the {a} or the {b}?',
                          'Which came first, the {a} or the {b}?'],
                  TableQuestion('', early.event.thing.name, '', '', '; '.join(told),
                                (early.segment, late.segment), subject=early.event.thing,
                                others=tuple(pair)), a=pair[0], b=pair[1])


@_kind('backward')
def _ask_ever(known: Known) -> TableQuestion:
    thing = known.a_thing(0.5)
    events = known.of(thing)
    first = events[0] if events else None
    so = thing in known.things
    question = known.yes_or_no(so, 'backward' if so else 'premise', '', known.told(thing, first),
                               known.proof(thing, first), thing if so else None)
    return _named(known, ['Has there ever been a {name}?', 'Did you ever see a {name}?'],
                  question, name=thing.name)


@_kind('backward')
def _ask_how_long_ago(known: Known) -> TableQuestion | None:
    fitting = []
    for seen in known.puts:
        latest = [s for s in known.puts if s.event.thing == seen.event.thing][-1]
        age_s = int(known.now_s) - seen.at_s
        fitting += [(seen, text) for text, (low, high) in AGES_S.items()
                    if seen is latest and low <= age_s <= high]
    if not fitting:
        return None
    seen, text = known.rng.choice(fitting)
    thing, now_s = seen.event.thing, int(known.now_s)
    # The difference, digit by digit: too much for one step. Always three digits, because how many
    # there are was guessed wrong more often than what they are.
    told = f'{seen.timed(thing)}, now {now_s} s, {now_s - seen.at_s:03} s ago'
    return _named(known, ['How long ago was the {name} put down?'],
                  TableQuestion('', text, '', '', told, (seen.segment,), subject=thing,
                                others=tuple(AGES_S)), name=thing.name)


@_kind('backward')
def _ask_when(known: Known) -> TableQuestion:
    thing = known.a_thing(0.9)
    return _named(known, ['When was the {name} put down?'], known.when(thing), name=thing.name)


@_kind('backward')
def _ask_under(known: Known) -> TableQuestion | None:
    if not known.state.covered:
        return None
    place = known.rng.choice(sorted(known.state.covered))
    thing = known.state.things[place]
    events = known.of(thing)
    last = events[-1] if events else None
    return _named(known, ['What is under the cover at the {place}?'],
                  TableQuestion('', thing.name, '', '', known.told(thing, last),
                                known.proof(thing, last), subject=thing,
                                others=known.things_but(thing)), place=PLACES[place])


@_kind('backward')
def _ask_last_place(known: Known) -> TableQuestion | None:
    gone = [thing for thing in known.things if thing not in known.state.things]
    if not gone:
        return None
    thing = known.rng.choice(gone)
    last = known.of(thing)[-1]
    return _named(known, ['Where did you last see the {name}?',
                          'Where was the {name} when it was taken away?'],
                  TableQuestion('', PLACES[last.event.place], '', '', last.about(thing),
                                (last.segment,), subject=thing, others=PLACES), name=thing.name)


@_kind('forward')
def _ask_tell_me(known: Known) -> TableQuestion:
    rng, state = known.rng, known.state
    what = rng.choice(('gone', 'there', 'place', 'count', 'covered'))
    thing = known.a_thing(0.8)
    if what == 'gone' and known.things:
        thing = known.a_known()
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
    if what == 'place':
        reasoning, proof = known.looked_at(place), ()
    elif thing is None:
        reasoning, proof = known.in_view, ()
    else:
        events = known.of(thing)
        last = events[-1] if events else None
        reasoning, proof = known.told(thing, last), known.proof(thing, last)
    return TableQuestion(text, 'it is so now' if so else 'not yet', '', '', reasoning, proof,
                         others=('it is so now', 'not yet'))


KINDS = tuple(_MAKERS)
KINDS_OF = {family: tuple(name for name, (of, _) in _MAKERS.items() if of == family)
            for family in FAMILIES}


class Asker(Known):
    """Makes questions about one moment of one stream."""

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


def _near(rng: random.Random, count: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(max(0, count - 3), count + 4) if n != count)
