"""Answering: one question as a step program, from its first token to its closed round.

In: the question, what it may see (memory as it was when it was asked), its session. Out:
pieces and the Answer through the PendingAnswer, and a Round for the session. The question branch
continues the source stream privately: video that arrives later never sees it and is never seen by
it.

    question ──▶ prefix ──┬──▶ token ──▶ token … ──▶ answer delivered ──▶ closer ──▶ round kept
                          └──▶ all choices side by side, the likeliest ──┘

Choices are compared as whole texts with their end mark, so that a short one is not favoured for
being short; each is a branch that attends to the same memory and the same question, computed once.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from tww_ros.config import EngineConfig
from tww_ros.engine.job import Program, generate, prefill, score
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.recall import Fetch, Search, recall
from tww_ros.engine.sessions import Round, Session, Sessions
from tww_ros.errors import NothingSeenError
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.notes import Resident, Scope
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.types import Answer, Evidence, Question

MAX_EVIDENCE = 8


def question_ids(model: StepModel, question: Question) -> list[int]:
    """Tokens of the question branch: the user's words, then the assistant's turn."""
    text = model.style.question(question.text, question.choices)
    return model.encode_user(text) + model.encode(model.style.question_tail)


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
    question, style, chunk = pending.question, model.style, config.step.chunk_tokens
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
    prefix = model.encode(style.choice_prefix if question.choices else style.answer_prefix)

    branch = model.new_block(view.start('source'), capacity=len(ids))
    logits = yield from prefill(branch, view, ids, chunk, mass=None if prefix else mass)
    own = [Entry(branch, 'source')]
    answer_view = lay_out([*entries, *own], model.scheme)
    block = model.new_block(answer_view.start('target'), capacity=len(prefix))
    if prefix:
        logits = yield from prefill(block, answer_view, prefix, chunk, mass=mass)

    closer = model.encode(style.answer_closer)
    probabilities: tuple[float, ...] = ()
    stream = _Stream(model, pending)
    if question.choices:
        if prefix:
            own.append(Entry(block, 'target'))
        options = [model.encode_user(choice) for choice in question.choices]
        scores, blocks = yield from score(model, [*entries, *own], logits, options, closer[0],
                                          chunk)
        probabilities = tuple(torch.tensor(scores, dtype=torch.float64).softmax(0).tolist())
        best = max(range(len(scores)), key=scores.__getitem__)
        written, finish_reason, text = options[best], 'choice', question.choices[best]
        block, block_view = blocks[best], lay_out([*entries, *own], model.scheme)
        stream.first_token()
        reasoning, rest = '', text
    else:
        limit = min(question.max_new_tokens, config.answer.max_new_tokens)
        written, finish_reason = yield from generate(
            block, answer_view, logits, ends=model.answer_ends, max_new_tokens=limit, mass=mass,
            on_tokens=stream.tokens)
        stream.first_token()
        block_view, raw = answer_view, model.decode(written)
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

    yield from prefill(block, block_view, closer, chunk, logits='none')
    block.seal()
    own.append(Entry(block, 'target'))
    sessions.add(session, Round(look.after, tuple(own), f'{question.text} {text}'))


class _Stream:
    """Turns growing token ids into text pieces."""

    def __init__(self, model: StepModel, pending: PendingAnswer) -> None:
        self.delivered = 0
        self._model = model
        self._pending = pending

    def first_token(self) -> None:
        if self._pending.first_token_s is None:
            self._pending.first_token_s = time.monotonic()

    def tokens(self, ids: list[int]) -> None:
        self.first_token()
        text = self._model.decode(ids)
        # A character's bytes may be spread over several tokens; a half one waits for the rest.
        if not text.endswith('\ufffd'):
            self._pending.write(text[self.delivered:])
            self.delivered = max(self.delivered, len(text))


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
