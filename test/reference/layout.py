"""A story of segments and questions → the units of `reference.naive`, by the rules of the mask.

    R_u   header, the segments of its camera before it (the newest that fit the read window)
    C_u   header, R_v for v ≤ u, C_k for k < u
    Q     header, R_v and C_v for v ≤ s, the earlier rounds of its session
    A     as Q, and Q

but for notes C without a word, which nobody sees; in time order: a segment, its note, the rounds
asked when it was the newest. What was generated is taken from a recording of the engine, and
everything else is written down here; `check_greedy` shows that the recording holds what the naive
logits say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from reference import stock
from reference.naive import Result, Unit
from reference.recorder import Recorded, Recorder

from tww_ros import Engine, EngineConfig, Frame, Question

START_NS = 1_700_000_000_123_456_789
UNLIMITED = 10 ** 9


@dataclass
class Segment:
    """Frames that the engine must make one segment of; stamps_s from the story's first frame."""

    name: str
    frames: Sequence[np.ndarray]
    stamps_s: Sequence[float]
    camera: str = 'camera'


@dataclass
class Ask:
    """A question of a session; it closes the open segments."""

    name: str
    session: str
    text: str
    limit: int = 5
    choices: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    window_s: tuple[float, float] | None = None


@dataclass
class Prompts:
    """The text around what is generated, written out here a second time."""

    note: str
    note_closer: str
    question_tail: str = '<|im_end|>\n<|im_start|>assistant\n'
    options: str = '\nAnswer with exactly one of: '
    answer: str = ''
    choice: str = ''
    answer_closer: str = '<|im_end|>\n<|im_start|>user\n'
    header: str = '<|im_start|>user\n'
    note_ends: tuple[str, ...] = ('<|im_end|>', '<|endoftext|>')
    answer_ends: tuple[str, ...] = ('<|im_end|>', '<|endoftext|>')


PROMPTS = {
    'stock': Prompts(
        note='In one short sentence, note what is new in the newest frames.'
             '<|im_end|>\n<|im_start|>assistant\n',
        note_closer='<|im_end|>\n<|im_start|>user\n'),
    'tww': Prompts(
        note='[SEG THINK]\n', note_closer='<EOT>', options='\nOptions: ',
        answer='\n\n[Q THINK]\n', choice='\n\n[Q THINK]\nAnswer: ', answer_closer='<EOQ>',
        note_ends=('<EOT>', '<|im_end|>', '<|endoftext|>'),
        answer_ends=('<EOQ>', '<|im_end|>', '<|endoftext|>')),
}


@dataclass
class Budgets:
    """Tokens: what reading, a note and a question see of the segments, and of the notes.

    held: tokens of segments and notes that memory keeps; the oldest segments go first, and when
    none is left the oldest notes, but never what has just come.
    """

    held: int = UNLIMITED
    read: int = UNLIMITED
    note: int = UNLIMITED
    resident: int = UNLIMITED
    resident_notes: int = UNLIMITED


@dataclass
class Layout:
    """Units in order of first use, the blocks recorded for them, and what was generated in each.

    generated: token ids; begins: where in the unit they begin; logits_before: the unit whose last
    logits choose the first one; ends: end marks; limits: caps; choices: ids of the choices.
    """

    units: list[Unit] = field(default_factory=list)
    blocks: dict[str, Recorded] = field(default_factory=dict)
    generated: dict[str, list[int]] = field(default_factory=dict)
    begins: dict[str, int] = field(default_factory=dict)
    logits_before: dict[str, str] = field(default_factory=dict)
    ends: dict[str, set[int]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    choices: dict[str, list[list[int]]] = field(default_factory=dict)


def tell(engine: Engine, story: Sequence[Segment | Ask]) -> dict[str, object]:
    """Feed a story to a running engine and wait for it; the answers by name."""
    pending, frames = {}, []

    def feed() -> None:
        for stamp_s, camera, image in sorted(frames, key=lambda item: item[0]):
            assert engine.feed(Frame(START_NS + round(stamp_s * 1e9), camera, image))
        frames.clear()

    for event in story:
        if isinstance(event, Segment):
            frames += [(stamp_s, event.camera, image) for stamp_s, image
                       in zip(event.stamps_s, event.frames, strict=True)]
            continue
        feed()
        window = event.window_s and tuple(START_NS + round(s * 1e9) for s in event.window_s)
        pending[event.name] = engine.ask(Question(
            event.text, session=event.session, max_new_tokens=event.limit, cameras=event.cameras,
            choices=event.choices, window=window))
    feed()
    assert engine.drain(60)
    return {name: answer.result(60) for name, answer in pending.items()}


def run(model: object, config: EngineConfig, story: Sequence[Segment | Ask], monkeypatch: object
        ) -> tuple[Recorder, dict[str, object], list]:
    """Tell a story to a new engine: what its model was asked, the answers, the segments."""
    recorder = Recorder(model, monkeypatch)
    with Engine(model, config) as engine:
        answers = tell(engine, story)
        return recorder, answers, engine.memory.segments()


def lay_out(tokenizer: object, recorder: Recorder, story: Sequence[Segment | Ask], style: str, *,
            note_limit: int, budgets: Budgets | None = None, label_cameras: bool = False
            ) -> Layout:
    """The units of a story that a deterministic engine was told, notes included."""
    text, budgets, layout = PROMPTS[style], budgets or Budgets(), Layout()
    recorded = recorder.list()

    def encode(words: str, special: bool = True) -> list[int]:
        return tokenizer.encode(words, add_special_tokens=False, split_special_tokens=not special)

    def marks(names: Sequence[str]) -> set[int]:
        return set(tokenizer.convert_tokens_to_ids(list(names)))

    def add(unit: Unit, matches: Callable[[list[int]], bool]) -> None:
        place = next((i for i, r in enumerate(recorded) if matches(r.ids)), None)
        assert place is not None, f'no block of the engine holds what {unit.name} must hold'
        layout.blocks[unit.name] = recorded.pop(place)
        layout.units.append(unit)

    def add_known(unit: Unit) -> None:
        add(unit, lambda ids: ids == unit.ids)

    def add_generated(unit: Unit, closer: str, before: str, ends: set[int], limit: int) -> None:
        """The first block left that begins so: prefix, generated tokens, closer."""
        prefix, tail = unit.ids, encode(closer)
        add(unit, lambda ids: ids[:len(prefix)] == prefix)
        unit.ids = layout.blocks[unit.name].ids
        assert unit.ids[:len(prefix)] == prefix and unit.ids[-len(tail):] == tail
        layout.generated[unit.name] = unit.ids[len(prefix):-len(tail)]
        layout.begins[unit.name] = len(prefix)
        layout.logits_before[unit.name] = unit.name if prefix else before
        layout.ends[unit.name], layout.limits[unit.name] = ends, limit

    def newest(names: list[str], budget: int) -> list[str]:
        kept = []
        for name in reversed(names):
            budget -= length(name)
            if budget < 0:
                break
            kept.insert(0, name)
        return kept

    def length(name: str) -> int:
        return len(layout.blocks[name].ids)

    def hold(names: list[str], new: str, owner: str) -> None:
        names.append(new)
        for held_names in (held, held_notes):
            while sum(map(length, held + held_notes)) > budgets.held:
                victims = [n for n in held_names if n.removeprefix('note ') != owner]
                if not victims:
                    break
                held_names.remove(victims[0])

    add_known(Unit('header', 'source', encode(text.header), []))
    segments = [event for event in story if isinstance(event, Segment)]
    order = {s.name: n for n, s in enumerate(sorted(segments, key=lambda s: s.stamps_s[0]))}
    closed: list[Segment] = []
    rounds: dict[str, list[tuple[tuple[int, ...], list[str]]]] = {}
    held: list[str] = []
    held_notes: list[str] = []

    def view(seen: list[Segment], source: int) -> list[tuple[tuple[int, ...], str]]:
        """What is held of these segments and their notes, with the places in time."""
        names = [s.name for s in sorted(seen, key=lambda s: order[s.name])]
        notes = [f'note {name}' for name in names]
        return ([((order[n], 0), n) for n in newest([n for n in names if n in held], source)]
                + [((order[n.removeprefix('note ')], 1), n) for n in newest(
                    [n for n in notes if n in held_notes], budgets.resident_notes)])

    def ordered(items: list[tuple[tuple[int, ...], str]]) -> list[str]:
        return ['header', *(name for _, name in sorted(items))]

    def write_note(name: str) -> None:
        seen = [s for s in closed if order[s.name] <= order[name]]
        unit = Unit(f'note {name}', 'target', encode(text.note), ordered(view(seen, budgets.note)))
        add_generated(unit, text.note_closer, '', marks(text.note_ends), note_limit)
        # A note without a word is not remembered.
        if tokenizer.decode(layout.generated[unit.name], skip_special_tokens=True).strip():
            hold(held_notes, unit.name, name)

    for event in story:
        if isinstance(event, Segment):
            height, width, _ = event.frames[0].shape
            ids = encode(f'Camera {event.camera}: ' if label_cameras else '') + encode(
                stock.video_text(event.stamps_s, height // 32, width // 32))
            before = newest([s.name for s in closed if s.camera == event.camera
                             and s.name in held], budgets.read)
            images = stock.pairs(event.frames)
            add_known(Unit(event.name, 'source', ids, ['header', *before], images))
            closed.append(event)
            hold(held, event.name, event.name)
            write_note(event.name)
            continue
        seen = [s for s in closed if not event.cameras or s.camera in event.cameras]
        if event.window_s:
            low, high = event.window_s
            seen = [s for s in seen if s.stamps_s[-1] >= low and s.stamps_s[0] <= high]
        earlier = rounds.setdefault(event.session, [])
        placed = view(seen, budgets.resident) + [((*place, part), name) for place, names in earlier
                          for part, name in enumerate(names)]
        sees = ordered(placed)
        words = event.text
        if event.choices:
            words += text.options + '; '.join(event.choices) + '.'
        ask = Unit(f'Q {event.name}', 'source', encode(words, False) + encode(text.question_tail),
                   sees)
        add_known(ask)
        own = [ask.name]
        if event.choices:
            if text.choice:
                prefix = Unit(f'P {event.name}', 'target', encode(text.choice), [*sees, *own])
                add_known(prefix)
                own.append(prefix.name)
            options = [encode(choice, False) for choice in event.choices]
            layout.choices[event.name] = options
            closer = encode(text.answer_closer)
            branches = []
            for number, option in enumerate(options):
                branch = Unit(f'A {event.name} {number}', 'target', option, [*sees, *own])
                kept = option + closer
                add(branch, lambda ids, known=(option, kept): ids in known)
                if layout.blocks[branch.name].ids == kept:
                    branch.ids = kept
                    branches.append(branch.name)
            assert len(branches) == 1, 'the round keeps one choice'
            own += branches
        else:
            reply = Unit(f'A {event.name}', 'target', encode(text.answer), [*sees, *own])
            add_generated(reply, text.answer_closer, ask.name, marks(text.answer_ends),
                          event.limit)
            own.append(reply.name)
        place = (max(order[s.name] for s in closed), 2, len(earlier))
        earlier.append((place, own))
    assert not recorded, f'{len(recorded)} blocks of the engine have no place in the layout'
    return layout


def check_greedy(layout: Layout, results: dict[str, Result]) -> None:
    """Every generated token is the likeliest one; every text ends at its first mark or its cap."""
    for name, ids in layout.generated.items():
        before = results[layout.logits_before[name]].logits[-1:]
        own, begin = results[name].logits, layout.begins[name]
        rows = own[begin - 1:] if begin else torch.cat((before, own))
        likeliest = rows[:len(ids) + 1].argmax(-1).tolist()
        assert ids == likeliest[:len(ids)]
        assert not set(ids) & layout.ends[name]
        assert len(ids) == layout.limits[name] or likeliest[len(ids)] in layout.ends[name]
