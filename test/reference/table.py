"""Right answers about a tabletop, worked out from the camera's truth messages alone.

Independent of `world.questions` and `world.notes`: it reads the words of a question and looks the
answer up in what `~/truth` said frame by frame.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NAME = re.compile(r'\b(red|orange|yellow|green|blue|purple|white|black) '
                  r'(ball|box|cone|star|ring|cup)\b')
ABOUT = {'about 10 seconds': 10, 'about 30 seconds': 30, 'about 1 minute': 60,
         'about 2 minutes': 120, 'about 4 minutes': 240}


class Table:
    """What the messages of a stream say up to one frame.

    truths: messages by their stamp (ns), from the first published frame on. cuts: stamps of the
    frames of each segment, the first to the one that ends with the frame asked about.
    """

    def __init__(self, truths: Mapping[int, dict[str, Any]],
                 cuts: Sequence[Sequence[int]]) -> None:
        now_ns, first_ns = cuts[-1][-1], cuts[0][0]
        so_far = [truths[stamp] for stamp in sorted(truths) if stamp <= now_ns]
        now_s = truths[now_ns]['t_s']
        under_way = {truth['event']['number']: truth['event'] for truth in so_far
                     if truth['event']}
        self.events = [event for _, event in sorted(under_way.items()) if event['end_s'] <= now_s]
        self.at = {place: each['thing'] for place, each in truths[now_ns]['state'].items()}
        self.covered = {place for place, each in truths[now_ns]['state'].items()
                        if each['covered']}
        self.things = [thing for thing in self.at.values() if thing]
        self.start = [each['thing'] for each in so_far[0]['state'].values() if each['thing']]
        self.known = {*self.start, *(event['thing'] for event in self.events)}
        self.puts = [event for event in self.events if event['kind'] == 'put']
        shown_s = [round(((cut[0] + cut[-1]) // 2 - first_ns) / 1e9, 1) for cut in cuts]
        ends_s = [truths[cut[-1]]['t_s'] for cut in cuts]
        self.told_s = {
            event['number']: int(next(shown for shown, end_s in zip(shown_s, ends_s, strict=True)
                                      if end_s >= event['end_s'])) for event in self.events}
        self.now_s = (now_ns - first_ns) / 1e9

    def answer(self, text: str, it: str = '') -> str:
        """The answer to a question; it: the thing that a follow-up is about."""
        names = [found.group() for found in NAME.finditer(text)] or [it]
        for pattern, look in RULES:
            if found := re.fullmatch(pattern, text):
                return look(self, *names, *found.groups())
        raise AssertionError(f'no rule for {text!r}')

    def where(self, name: str) -> str:
        places = [place for place, thing in self.at.items() if thing == name]
        return places[0] if places else (
            'it was taken away' if name in self.known else f'there was no {name}')

    def before(self, name: str) -> str:
        if name not in self.known:
            return f'there was no {name}'
        left = [event['from_place'] if event['thing'] == name else event['place']
                for event in self.events
                if event['kind'] in ('move', 'swap') and name in (event['thing'], event['other'])]
        return left[-1] if left else 'it was not moved'

    def when(self, name: str) -> str:
        told = [self.told_s[event['number']] for event in self.puts if event['thing'] == name]
        return f'at {told[-1]} s' if told else (
            'it was there from the start' if name in self.known else f'there was no {name}')

    def how_long_ago(self, name: str) -> str:
        age_s = self.now_s - int(self.when(name).split()[1])
        return min(ABOUT, key=lambda told: max(ABOUT[told], age_s) / min(ABOUT[told], age_s))

    def is_covered(self, name: str) -> str:
        return yes(self.where(name) in self.covered)

    def is_there(self, name: str) -> str:
        return yes(name in self.things)

    def last(self, kind: str) -> str:
        return [event['thing'] for event in self.events if event['kind'] == kind][-1]

    def earlier(self, *names: str) -> str:
        return next(event['thing'] for event in self.puts if event['thing'] in names)

    def only(self, word: str) -> str:
        thing, = (thing for thing in self.things if word in thing.split())
        return thing


def yes(so: bool) -> str:
    return 'yes' if so else 'no'


def so_now(so: bool) -> str:
    return 'it is so now' if so else 'not yet'


def what_at(table: Table, _: str, place: str) -> str:
    return 'a cover' if place in table.covered else table.at[place] or 'nothing'


Rule = tuple[str, Callable[..., str]]
RULES: list[Rule] = [
    (r'(?:And w|W)here (?:is|can I find) (?:it|the [\w ]+?)(?: now)?\?', Table.where),
    (r'(?:And w|W)here was (?:it|the [\w ]+) before(?: that| it was moved)?\?', Table.before),
    (r'(?:And w|W)hen was (?:it|the [\w ]+) put down\?', Table.when),
    (r'(?:And is it|Is the [\w ]+) covered\?', Table.is_covered),
    (r'And is it still there\?', Table.is_there),
    (r'Is (?:there a|the) [\w ]+ on the table(?: now)?\?', Table.is_there),
    (r'What (?:is|stands) at the ([\w ]+?)(?: now)?\?', what_at),
    (r'How many objects are on the table(?: now)?\?', lambda t, *_: str(len(t.things))),
    (r'What colour is the (\w+)\?', lambda t, _, shape: t.only(shape).split()[0]),
    (r'What is the (\w+) object\?', lambda t, _, colour: t.only(colour)),
    (r'(?:Which object|What) was put down first\?', lambda t, *_: t.puts[0]['thing']),
    (r'Which object was put down as number (\d)\?',
     lambda t, _, number: t.puts[int(number) - 1]['thing']),
    (r'(?:Which object|What) was put down last\?', lambda t, *_: t.last('put')),
    (r'(?:Which object|What) was taken away last\?', lambda t, *_: t.last('take')),
    (r'Which object was covered last\?', lambda t, *_: t.last('cover')),
    (r'How many objects (?:have been|were) put down(?: so far)?\?',
     lambda t, *_: str(len(t.puts))),
    (r'Which (?:was put down|came) first, the [\w ]+ or the [\w ]+\?', Table.earlier),
    (r'(?:Has there ever been|Did you ever see) a [\w ]+\?', lambda t, name: yes(name in t.known)),
    (r'How long ago was the [\w ]+ put down\?', Table.how_long_ago),
    (r'What is under the cover at the ([\w ]+)\?', lambda t, _, place: t.at[place]),
    (r'Where did you last see the [\w ]+\?|Where was the [\w ]+ when it was taken away\?',
     lambda t, name: [event['place'] for event in t.events
                      if event['kind'] == 'take' and event['thing'] == name][-1]),
    (r'Tell me when the [\w ]+ is gone\.', lambda t, name: so_now(name not in t.things)),
    (r'Tell me when the [\w ]+ is on the table\.', lambda t, name: so_now(name in t.things)),
    (r'Tell me when the [\w ]+ is covered\.',
     lambda t, name: so_now(t.where(name) in t.covered)),
    (r'Tell me when something is at the ([\w ]+)\.',
     lambda t, _, place: so_now(bool(t.at[place]))),
    (r'Tell me when there are (\d+) objects on the table\.',
     lambda t, _, count: so_now(len(t.things) >= int(count))),
]
