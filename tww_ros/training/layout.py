"""A sample laid out as the engine would run it: tokens, positions, and what each span attends to.

In: a Sample (segments with their notes, rounds with their answers) and the engine's settings. Out:
a Plan, plain arrays. The engine's own MemoryBank, Sessions and `lay_out` decide what is seen and
where it stands; blocks carry token ids instead of keys and values. So the streaming mask, both
position schemes, windows and budgets are the engine's by construction, and a test compares the
logits of both.

    letters   N tokens of the plan   K tokens that a span attends to besides its own
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tww_ros.config import EngineConfig
from tww_ros.engine.answering import question_ids
from tww_ros.engine.sessions import Round, Session
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.notes import Scope
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model import prompts
from tww_ros.model.codec import TextCodec
from tww_ros.model.positions import patch_positions, text_positions
from tww_ros.types import NS_PER_S, Note, Question
from tww_ros.video.pixels import to_pixels
from tww_ros.video.token_drop import TokenDrop

IGNORED = -100


@dataclass(frozen=True, eq=False)
class SamplePatch:
    """One temporal patch: time shown in its timestamp, its frames (uint8 RGB), merged grid."""

    time_s: float
    frames: tuple[np.ndarray, ...]
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class SampleSegment:
    """A closed segment. patches: empty when its video is left out (only its note is seen).

    note: None when it gets none. learn: whether the note is trained on.
    """

    start_s: float
    end_s: float
    patches: tuple[SamplePatch, ...]
    note: str | None
    learn: bool = True


@dataclass(frozen=True)
class SampleRound:
    """A question asked when `after` segments were closed, of which `noted` had their notes.

    family and proof (segments that hold what is needed) are for data sets; nothing is laid out
    by them.
    """

    after: int
    noted: int
    session: str
    question: str
    answer: str
    reasoning: str = ''
    choices: tuple[str, ...] = ()
    learn: bool = True
    kind: str = ''
    family: str = ''
    proof: tuple[int, ...] = ()
    # What a search brings back, best first, where not all segments are seen.
    found: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """A stream with its notes and rounds; rounds are in the order in which they are asked."""

    segments: tuple[SampleSegment, ...]
    rounds: tuple[SampleRound, ...]


@dataclass(eq=False)
class PlannedBlock:
    """Stands for a KV block: tokens of the plan (int64 [T]) at stored positions (int64 [3, T]).

    Has what MemoryBank and lay_out ask of a block.
    """

    tokens: np.ndarray
    positions: np.ndarray
    start: int
    end: int
    nbytes: int = 0

    @property
    def length(self) -> int:
        """T."""
        return len(self.tokens)

    @property
    def extent(self) -> int:
        """Positions that it occupies."""
        return self.end - self.start

    def keep(self, mask: torch.Tensor) -> PlannedBlock:
        """As `KVBlock.keep`."""
        kept = mask.numpy()
        return dataclasses.replace(self, tokens=self.tokens[kept],
                                   positions=self.positions[:, kept])


@dataclass(frozen=True, eq=False)
class SharedView:
    """What several spans attend to. keys: int64 [K] tokens; places: int64 [3, K], where they stand
    in the spans' view."""

    keys: np.ndarray
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class PlannedSpan:
    """Tokens first to last, what they attend to, and which earlier spans of the same view they see
    as a whole, at those spans' own positions. Own tokens are attended to causally.
    """

    first: int
    last: int
    view: SharedView
    sees: tuple[int, ...] = ()


@dataclass(eq=False)
class Plan:
    """One sample, ready to be trained on.

    ids, labels [N] (labels: the next token where it is learnt, else IGNORED); positions [3, N];
    visual: bool [N]; patches: in the order of their tokens. For reports: what: per span 'read',
    'note', 'ask' or 'answer', and after a colon which kind; final: bool [N], labels that belong to
    an answer proper, not to its reasoning.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    visual: list[bool] = field(default_factory=list)
    spans: list[PlannedSpan] = field(default_factory=list)
    what: list[str] = field(default_factory=list)
    final: list[bool] = field(default_factory=list)
    patches: list[SamplePatch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learnt(self) -> int:
        """Number of tokens that are learnt."""
        return sum(label != IGNORED for label in self.labels)


def plan(sample: Sample, model: TextCodec, config: EngineConfig) -> Plan:
    """Lay a sample out; the codec gives prompts, tokens and the position scheme."""
    return _Planner(sample, model, config).run()


@dataclass(eq=False)
class _Moment:
    """What a session sees at one moment; grows by its rounds of that moment."""

    when: tuple[int, int]
    entries: list[Entry]
    view: SharedView
    spans: list[int]


class _Planner:
    def __init__(self, sample: Sample, model: TextCodec, config: EngineConfig) -> None:
        self._sample = sample
        self._model = model
        self._style = model.style
        self._config = config
        self._plan = Plan()
        self._bank = MemoryBank(config.memory)
        self._drop = TokenDrop(config.watch)
        self._records: list[SegmentRecord] = []
        self._sessions: dict[str, Session] = {}
        self._moments: dict[str, _Moment] = {}
        self._fresh: _Moment | None = None
        self._marks = [model.encode(mark)[0]
                       for mark in (prompts.VISION_START, prompts.VISION_END)]
        # What a question may see of the notes: those written by then.
        self._written: list[tuple[PlannedBlock | None, Note] | None] = []

    def run(self) -> Plan:
        header = self._model.encode(self._style.header)
        sink = self._add(header, text_positions(len(header), 0),
                         self._shared(View((), 0, 0)), 'read', 0)
        self._sink = Entry(sink, 'source')
        rounds = list(self._sample.rounds)
        attached = 0
        for number, segment in enumerate(self._sample.segments):
            self._read(number, segment)
            self._note(number, segment)
            while rounds and rounds[0].after <= number + 1:
                due = rounds.pop(0)
                attached = self._attach(attached, due.noted)
                self._round(due)
            # A note sees all notes before it, so the next one needs this one in the bank.
            attached = self._attach(attached, number + 1)
        return self._plan

    def _read(self, number: int, segment: SampleSegment) -> None:
        start = self._records[-1].block.end if self._records and self._records[-1].block else (
            self._sink.block.end)
        record = SegmentRecord(number, number, 'camera', 0, round(segment.start_s * NS_PER_S),
                               round(segment.end_s * NS_PER_S))
        self._records.append(record)
        before = self._bank.before(record, self._config.memory.read_window_tokens)
        view = lay_out([self._sink, *before], 'continuous').anchored(start)
        ids, positions, visual, at = [], [], [], start
        for patch in segment.patches:
            head = [*self._model.encode(prompts.timestamp(patch.time_s)), self._marks[0]]
            count = patch.rows * patch.columns
            grid, after = patch_positions(patch.rows, patch.columns, at + len(head))
            positions += [text_positions(len(head), at), grid, text_positions(1, after)]
            ids += [*head, *[self._model.video_pad_id] * count, self._marks[1]]
            visual += [False] * len(head) + [True] * count + [False]
            at = after + 1
        if ids:
            record.block = self._add(ids, np.concatenate(positions, axis=1),
                                     self._shared(view), 'read', start, visual=visual)
            record.tokens = len(ids)
            record.kept = self._kept(segment.patches, np.array(visual))
            self._plan.patches += segment.patches
        self._bank.add(record)

    def _kept(self, patches: Sequence[SamplePatch], visual: np.ndarray) -> list[np.ndarray]:
        """bool [T]: what stays of a segment when it is no longer recent; none = all of it."""
        watch = self._config.watch
        if not watch.drop_threshold:
            return []
        kept = np.ones(len(visual), bool)
        kept[visual] = np.concatenate([
            self._drop.keep(to_pixels(patch.frames, min_pixels=watch.min_pixels,
                                      max_pixels=watch.max_pixels),
                            camera='camera', epoch=0, stamp_ns=round(patch.time_s * NS_PER_S))
            for patch in patches])
        return [kept]

    def _note(self, number: int, segment: SampleSegment) -> None:
        self._written.append(None)
        learnt = segment.learn and bool(segment.patches)
        # Nobody looks at a note that says nothing new.
        if segment.note is None or (self._style.says_nothing(segment.note) and not learnt):
            return
        seen = self._bank.resident(
            Scope(0, until=number), tokens=self._config.note.window_tokens,
            note_tokens=self._config.memory.resident_note_tokens)
        view = lay_out([self._sink, *(item.entry for item in seen)], self._model.scheme)
        prefix = self._model.encode(self._style.note_prefix)
        ids = [*prefix, *self._model.encode(self._style.note_text(segment.note)),
               *self._model.encode(self._style.note_closer)]
        # All of the note and the mark that ends it, which the closer begins with.
        closer = len(self._model.encode(self._style.note_closer))
        taught = range(len(prefix), len(ids) - closer + 1) if learnt else range(0)
        start = view.start('target')
        what = 'note:nothing' if self._style.says_nothing(segment.note) else 'note:event'
        block = self._add(ids, text_positions(len(ids), start), self._shared(view), what, start,
                          learnt=taught)
        kept = None if self._style.says_nothing(segment.note) else block
        self._written[number] = (kept, Note(number, 'camera', 0, 0, segment.note, len(ids),
                                            'stop', 0.0))

    def _attach(self, attached: int, until: int) -> int:
        for number in range(attached, until):
            if self._written[number] is not None:
                block, note = self._written[number]
                self._bank.attach_note(self._records[number], note, block)
        return max(attached, until)

    def _round(self, due: SampleRound) -> None:
        style, model = self._style, self._model
        session = self._sessions.setdefault(due.session, Session(due.session))
        moment = self._moment(due, session)
        ids = question_ids(model, Question(due.question, choices=due.choices))
        start = lay_out(moment.entries, model.scheme).start('source')
        asked = self._add(ids, text_positions(len(ids), start), moment.view, 'ask', start,
                          sees=tuple(moment.spans))
        sees = (*moment.spans, len(self._plan.spans) - 1)
        if due.choices and not self._config.answer.reason_choices:
            prefix = model.encode(style.choice_prefix)
            written, reasoned = model.encode_user(due.answer), 0
        else:
            prefix = model.encode(style.answer_prefix)
            written = model.encode(style.answer_text(due.reasoning, due.answer))
            # The space before the answer may be part of its first token.
            bare = model.encode(style.answer_text(due.reasoning, ''))
            pairs = zip(written, [*bare, -1], strict=False)
            reasoned = next(index for index, (a, b) in enumerate(pairs) if a != b)
        closer = model.encode(style.answer_closer)
        ids = [*prefix, *written, *closer]
        entries = [*moment.entries, Entry(asked, 'source')]
        start = lay_out(entries, model.scheme).start('target')
        # Of the closer, the mark that ends the answer is learnt.
        kind = f'answer:{due.kind}:{"choice" if due.choices else "open"}'
        block = self._add(ids, text_positions(len(ids), start), moment.view, kind, start,
                          final=len(prefix) + reasoned,
                          learnt=range(len(prefix), len(ids) - len(closer) + 1) if due.learn else
                          range(0), sees=sees)
        finished = Round(self._bank.newest_order, (Entry(asked, 'source'), Entry(block, 'target')))
        session.rounds.append(finished)
        moment.entries += finished.entries
        moment.spans = [*sees, len(self._plan.spans) - 1]
        while sum(past.tokens for past in session.rounds) > self._config.answer.session_tokens:
            session.forget_oldest()
            self._moments.pop(due.session, None)

    def _moment(self, due: SampleRound, session: Session) -> _Moment:
        """What a round sees: shared with the session's earlier rounds of the same moment."""
        when = (due.after, due.noted)
        known = self._moments.get(due.session)
        if known is not None and known.when == when:
            return known
        # Sessions without a past all look at the same.
        fresh = self._fresh if not session.rounds else None
        if fresh is None or fresh.when != when:
            memory = self._config.memory
            seen = self._bank.resident(Scope(0), tokens=memory.resident_tokens,
                                       note_tokens=memory.resident_note_tokens,
                                       recent_tokens=memory.recent_tokens, found=due.found)
            placed = [(item.place, item.entry) for item in seen] + session.entries()
            entries = [self._sink,
                       *(entry for _, entry in sorted(placed, key=lambda pair: pair[0]))]
            fresh = _Moment(when, entries, self._shared(lay_out(entries, self._model.scheme)), [])
            if not session.rounds:
                self._fresh = fresh
        moment = _Moment(when, list(fresh.entries), fresh.view, [])
        self._moments[due.session] = moment
        return moment

    def _add(self, ids: Sequence[int], positions: np.ndarray, view: SharedView, what: str,
             start: int, *, visual: list[bool] | None = None, learnt: range = range(0),
             final: int | None = None, sees: tuple[int, ...] = ()) -> PlannedBlock:
        """Append one span; tokens `learnt` are predicted by the ones before them."""
        target = self._plan
        first, count = len(target), len(ids)
        labels = [IGNORED] * count
        for index in learnt:
            labels[index - 1] = ids[index]
        target.final += [final is not None and index + 1 >= final for index in range(count)]
        target.ids += ids
        target.labels += labels
        target.positions.append(positions)
        target.visual += visual or [False] * count
        target.what.append(what)
        target.spans.append(PlannedSpan(first, first + count, view, sees))
        return PlannedBlock(np.arange(first, first + count), positions, start,
                            int(positions.max()) + 1)

    def _shared(self, view: View) -> SharedView:
        keys = [part.block.tokens[:part.length] for part in view.parts]
        places = [part.block.positions[:, :part.length] + part.shift for part in view.parts]
        return SharedView(np.concatenate(keys) if keys else np.zeros(0, np.int64),
                          np.concatenate(places, axis=1) if places else np.zeros((3, 0), np.int64))
