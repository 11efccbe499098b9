"""Answering: one question as a step program, from its first token to its closed round; and the
questions that are under way.

In: the question, what it may see (memory as it was when it was asked), its session. Out:
pieces and the Answer through the PendingAnswer, and a Round for the session. The question branch
continues the source stream privately: video that arrives later never sees it and is never seen by
it.

    question ──▶ prefix ──▶ token ──▶ token … ──┬──────────▶ answer delivered ──▶ closer ──▶ round
                             (reasoning)        └──▶ all choices side by side,       kept
                                                     the likeliest ──┘

Choices are compared as whole texts with their end mark, so that a short one is not favoured for
being short; each is a branch that attends to the same memory, the same question and the same
reasoning, computed once.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tww_ros.config import EngineConfig, MemoryConfig
from tww_ros.engine.job import Job, Program, Result, generate, prefill, score
from tww_ros.engine.keeper import Keeper
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.recall import Fetch, Search, recall
from tww_ros.engine.sessions import Round, Session, Sessions
from tww_ros.errors import NothingSeenError, QuestionError, TwwError
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.block import KVBlock
from tww_ros.memory.notes import Resident, Scope
from tww_ros.memory.view import Entry, Part, Scheme, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import Span, TokenRun
from tww_ros.types import Answer, Evidence, Question

MAX_EVIDENCE = 8
# The mark before the answer proper is looked for in so many of the last tokens.
MARK_TOKENS = 8


def question_ids(model: StepModel, question: Question) -> list[int]:
    """Tokens of the question branch: the user's words, then the assistant's turn."""
    text = model.style.question(question.text, question.choices)
    return model.encode_user(text) + model.encode(model.style.question_tail)


def scope_of(bank: MemoryBank, config: MemoryConfig, question: Question, epoch: int) -> Scope:
    """Memory as a question that is asked now sees it; NothingSeenError when that is nothing."""
    scope = Scope(epoch, question.cameras, question.window, change=bank.change)
    if bank.shows(scope, tokens=config.resident_tokens, note_tokens=config.resident_note_tokens):
        return scope
    everything = {'tokens': sys.maxsize, 'note_tokens': sys.maxsize, 'fetch': True}
    too_long = bank.resident(scope, **everything)
    if too_long:
        raise QuestionError(
            f'the newest segment has {too_long[-1].record.tokens} tokens, and an answer attends '
            f'to at most {config.resident_tokens}; raise memory.resident_tokens, or lower '
            'watch.segment_s or watch.max_pixels')
    where = f' of {", ".join(question.cameras)}' if question.cameras else ''
    held = [item.record for item in bank.resident(scope._replace(window=None), **everything)]
    if not held:
        raise NothingSeenError(f'nothing{where} is in memory yet; check that images arrive, or '
                               'ask later')
    raise NothingSeenError(
        f'nothing{where} is in memory in the window asked about; what is there spans '
        f'{min(r.start_ns for r in held)} to {max(r.end_ns for r in held)} ns')


class Look(NamedTuple):
    """What a question may look at, and how what is not at hand is found.

    scope: memory as it was when it was asked, not empty. after: order of the newest segment then,
    seen or not: the round's place in time.
    """

    bank: MemoryBank
    sink: Entry
    scope: Scope
    after: int
    search: Search
    fetch: Fetch


def answer(model: StepModel, config: EngineConfig, pending: PendingAnswer, sessions: Sessions,
           session: Session, look: Look) -> Program[None]:
    """Answer one question."""
    question, style = pending.question, model.style
    pending.started_s = time.monotonic()
    sink, ids = look.sink, question_ids(model, question)
    words = ' '.join((session.newest_words, question.text))
    seen = yield from recall(model, config, look.bank, sink, look.scope, words, ids, look.search,
                             look.fetch)
    if not seen:
        raise NothingSeenError('what the question may look at was lost from memory while it '
                               'waited; ask again')
    placed = [(item.place, item.entry) for item in seen] + session.entries()
    entries = [sink, *(entry for _, entry in sorted(placed, key=lambda pair: pair[0]))]
    view = lay_out(entries, model.scheme)
    # Memory's parts come first in every view below, so one tensor collects the mass of all steps.
    mass = torch.zeros(len(entries) + 3, device=model.device)
    reasons = bool(style.answer_mark) and config.answer.reason_choices
    prefix = model.encode(style.choice_prefix if question.choices and not reasons
                          else style.answer_prefix)

    # On one axis what the answer begins with comes right behind the question: one run of tokens,
    # which attends to memory once.
    joined = prefix if model.scheme == 'continuous' else []
    branch = model.new_block(view.start('source'), capacity=len(ids) + len(joined))
    asked = TokenRun.text([*ids, *joined], branch.end)
    behind = _behind(view, branch, len(asked), model.scheme)
    block = model.new_block(behind.start('target'), capacity=len(prefix))
    begun = TokenRun.text(prefix[len(joined):], block.end)
    # On two it is in the other block, and sees the question that the same step computes.
    *_, told = yield ([Span(branch, view, asked), Span(block, behind, begun, 'last', mass)]
                      if len(begun) else [Span(branch, view, asked, 'last', mass)])
    own = [Entry(branch, 'source')]

    closer = model.encode(style.answer_closer)
    limit = min(question.max_new_tokens, config.answer.max_new_tokens)
    probabilities: tuple[float, ...] = ()
    stream = _Stream(model, pending)
    if question.choices:
        written: list[int] = []
        if reasons:
            written, told = yield from _reason(model, block, behind, told, limit, stream, mass)
        if block.length:
            own.append(Entry(block, 'target'))
        raw = model.decode(written)
        # Where the mark's last token does not hold the space, the choice's first one does.
        space = ' ' if raw and not raw[-1].isspace() else ''
        options = [model.encode_user(space + choice) for choice in question.choices]
        scores, blocks = yield from score(model, [*entries, *own], told.logits, options, closer[0])
        probabilities = tuple(torch.tensor(scores, dtype=torch.float64).softmax(0).tolist())
        best = max(range(len(scores)), key=scores.__getitem__)
        written, finish_reason, text = [*written, *options[best]], 'choice', question.choices[best]
        block, block_view = blocks[best], lay_out([*entries, *own], model.scheme)
        pending.begin()
        reasoning, rest = style.split_answer(raw)[0], raw[stream.delivered:] + space + text
    else:
        written, finish_reason = yield from generate(
            block, behind, told.token, ends=model.answer_ends, max_new_tokens=limit, mass=mass,
            on_tokens=stream.tokens)
        pending.begin()
        block_view, raw = behind, model.decode(written)
        reasoning, text = style.split_answer(raw)
        rest = raw[stream.delivered:]
        if finish_reason == 'length':
            closer = [written[-1], *closer]

    now_s = time.monotonic()
    pending.complete(Answer(
        text=text, reasoning=reasoning, finish_reason=finish_reason,
        as_of_ns=max(item.record.end_ns for item in seen),
        evidence=_evidence(view, seen, mass), choice_probabilities=probabilities,
        prompt_tokens=len(ids), completion_tokens=len(written), reused_tokens=view.tokens,
        queue_s=pending.started_s - pending.asked_s,
        first_token_s=pending.first_token_s - pending.asked_s, total_s=now_s - pending.asked_s,
        token_ids=tuple(written)), rest)
    if not session.kept:
        return

    yield from prefill(block, block_view, closer, logits='none')
    own.append(Entry(block, 'target'))
    for entry in own:
        entry.block.seal()
    sessions.add(session, Round(look.after, tuple(own), f'{question.text} {text}'))


def _reason(model: StepModel, block: KVBlock, view: View, told: Result, limit: int,
            stream: _Stream, mass: torch.Tensor) -> Program[tuple[list[int], Result]]:
    """Reason until the mark that stands before the answer proper; where the model ends without it,
    or goes on for too long, it is written for it. Returns the ids and what follows the mark."""
    mark = model.style.answer_mark
    ids: list[int] = []
    while len(ids) < limit and told.token not in model.answer_ends:
        ids.append(told.token)
        stream.tokens(ids)
        told, = yield [Span(block, view, TokenRun.text(ids[-1:], block.end), 'last', mass)]
        if model.decode(ids[-MARK_TOKENS:]).rstrip().endswith(mark):
            return ids, told
    forced = model.encode(f'\n{mark} ')
    if model.decode(forced[-1:]) == ' ':
        # No token of the mark: it begins the choice.
        forced.pop()
    return [*ids, *forced], (yield from prefill(block, view, forced))


def _behind(view: View, block: KVBlock, tokens: int, scheme: Scheme) -> View:
    """The view with a question that begins where its source side ends, computed or not yet."""
    end = block.start + tokens
    return View((*view.parts, Part(block, tokens, 0)), end,
                end if scheme == 'continuous' else view.next_target)


class _Stream:
    """Turns growing token ids into text pieces."""

    def __init__(self, model: StepModel, pending: PendingAnswer) -> None:
        # Characters, and tokens that they are of.
        self.delivered = 0
        self._told = 0
        self._model = model
        self._pending = pending

    def tokens(self, ids: list[int]) -> None:
        self._pending.begin()
        text = self._model.decode(ids[self._told:])
        # A character's bytes may be spread over several tokens; a half one waits for the rest.
        if not text.endswith('\ufffd'):
            self._pending.write(text)
            self.delivered += len(text)
            self._told = len(ids)


def _evidence(view: View, seen: list[Resident], mass: torch.Tensor) -> tuple[Evidence, ...]:
    """Segments by their share of the attention mass, highest first; note and video together."""
    total = float(mass.sum()) or 1.0
    # A segment and its note share an id and a share; an episode has its own.
    items = {item.entry.segment_id: item for item in seen}
    shares = dict.fromkeys(items, 0.0)
    for part, share in zip(view.parts, mass.tolist(), strict=False):
        if part.segment_id is not None:
            shares[part.segment_id] += share / total
    best = sorted(shares, key=lambda key: (-shares[key], key))[:MAX_EVIDENCE]
    return tuple(_told_of(items[key], shares[key]) for key in best)


def _told_of(item: Resident, share: float) -> Evidence:
    r = item.record
    if item.told is not None and item.told.parts:
        episode = item.told.note
        return Evidence(episode.segment_id, r.camera, episode.start_ns, episode.end_ns, share,
                        'note', episode.text, r.pose)
    return Evidence(r.id, r.camera, r.start_ns, r.end_ns, share, r.tier,
                    r.note.text if r.note else '', r.pose)


@dataclass(eq=False)
class _Waiting:
    """A question that was admitted; its session's earlier round may still be under way."""

    pending: PendingAnswer
    session: Session
    scope: Scope
    after: int


class Answering(Job):
    """An answer under way."""

    def __init__(self, program: Program[None], pending: PendingAnswer, session: Session) -> None:
        super().__init__(program)
        self.pending = pending
        self.session = session


class AnswerQueue:
    """Admitted questions, oldest first: `waiting` for their session, or `under_way`.

    Only the reasoner calls it.
    """

    def __init__(self, model: StepModel, bank: MemoryBank, keeper: Keeper, sessions: Sessions,
                 config: EngineConfig, sink: Entry,
                 report: Callable[[str, Exception], None]) -> None:
        """report: hears in words what went wrong, and why."""
        self.waiting: list[_Waiting] = []
        self.under_way: list[Answering] = []
        self._model = model
        self._bank = bank
        self._keeper = keeper
        self._sessions = sessions
        self._config = config
        self._sink = sink
        self._report = report

    def ask(self, pending: PendingAnswer, epoch: int, *, kept: bool) -> None:
        """Take the question's snapshot of memory; raises when there is nothing to look at.

        kept: False for one that belongs to no session, and that nobody remembers.
        """
        if pending.done():
            return
        # A session with a question in line is then busy, and not forgotten as an idle one.
        self.begin()
        scope = scope_of(self._bank, self._config.memory, pending.question, epoch)
        session = (self._sessions.get(pending.question.session) if kept
                   else Session('', kept=False))
        self.waiting.append(_Waiting(pending, session, scope, self._bank.newest_order))

    def begin(self) -> None:
        """Begin those whose session is free."""
        self.waiting = [waiting for waiting in self.waiting if not waiting.pending.done()]
        for waiting in list(self.waiting):
            if waiting.session.busy:
                continue
            self.waiting.remove(waiting)
            pending, session, scope = waiting.pending, waiting.session, waiting.scope
            session.busy = True
            if session.kept:
                pending.add_done_callback(functools.partial(self._answered, scope))
            look = Look(self._bank, self._sink, scope, waiting.after, self._keeper.search,
                        self._keeper.fetch)
            program = answer(self._model, self._config, pending, self._sessions, session, look)
            try:
                self.under_way.append(Answering(program, pending, session))
            except Exception as error:
                session.busy = False
                self.fail(pending, error)

    def go_on(self) -> None:
        """End those that were cut short; go on with those for which what they wait for came."""
        for answering in list(self.under_way):
            if answering.pending.error() is not None:
                self.end(answering)
                continue
            try:
                answering.poll()
                if answering.done:
                    self.end(answering)
            except Exception as error:
                self.give_up(answering, error)

    def end(self, answering: Answering) -> None:
        """Free the session for its next round; a round cut short leaves no trace in it."""
        answering.stop()
        answering.session.busy = False
        self.under_way.remove(answering)

    def give_up(self, answering: Answering, error: Exception) -> None:
        """It cannot be answered; the others can."""
        self.end(answering)
        self.fail(answering.pending, error)

    def fail(self, pending: PendingAnswer, error: Exception) -> None:
        """Tell who asked."""
        if not isinstance(error, TwwError):
            self._report('a question could not be answered', error)
            error = QuestionError(f'the question could not be answered: {type(error).__name__}: '
                                  f'{error}; ask for less (a shorter window, fewer tokens), or '
                                  'see the log')
        pending.fail(error)

    def _answered(self, scope: Scope, pending: PendingAnswer) -> None:
        if pending.error() is None:
            self._keeper.keep_answer(pending.question, pending.result(), scope.epoch)
