"""Jobs: work for the language model written as step programs.

A step program is a generator: it yields the spans that it wants computed and is sent a `Result`
for each of them when the last one is; or it yields a Future and is sent its result when it has
come. So a note or an answer reads from top to bottom like straight code, while the reasoner
interleaves the spans of all jobs in the same steps. How many steps its spans take is not the
program's business: `Job.take` gives out as many tokens as there is room for, and cuts a span that
is longer.

Programs here know nothing of sessions, memory or threads.

    letters   T tokens of a run   vocab size of the vocabulary
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from tww_ros.memory.block import KVBlock
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import Span, TokenRun

Returned = TypeVar('Returned')
Program = Generator['list[Span] | Future', Any, Returned]


class Result(NamedTuple):
    """What came of one span: its logits [rows, vocab], and where there is one row the likeliest
    token behind it."""

    logits: torch.Tensor | None
    token: int | None = None


def results_of(logits: Sequence[torch.Tensor | None]) -> list[Result]:
    """The results of a step: one wait for the device for all tokens, not one for each."""
    rows = [part for part in logits if part is not None and len(part) == 1]
    likeliest = iter(torch.cat(rows).argmax(-1).tolist() if rows else ())
    return [Result(part, next(likeliest)) if part is not None and len(part) == 1 else Result(part)
            for part in logits]


class Job:
    """A running step program. It has nothing to `take` while it waits for something else (`poll`),
    and when it is `done`."""

    def __init__(self, program: Program[None]) -> None:
        self._program = program
        self._awaited: Future | None = None
        # Spans whose results are missing; the first one may be computed in part.
        self._wanted: deque[Span] = deque()
        self._taken: list[Span] = []
        self._rows: list[torch.Tensor] = []
        self._results: list[Result] = []
        self.done = False
        self._resume(lambda: next(program))

    @property
    def rows(self) -> int:
        """Tokens that it wants computed; 1 while it decodes."""
        return sum(len(span.run) for span in self._wanted)

    def take(self, budget: int) -> list[Span]:
        """Spans for the next step, `budget` tokens at most, in order: whole ones while they fit,
        and a piece of the next one."""
        self._taken = []
        for span in self._wanted:
            if budget <= 0:
                break
            self._taken.append(_piece(span, 0, min(budget, len(span.run))))
            budget -= len(span.run)
        return self._taken

    def advance(self, results: Sequence[Result]) -> None:
        """Hand over the results of what was taken; the program goes on when it has them all."""
        for span, result in zip(self._taken, results, strict=True):
            whole = self._wanted.popleft()
            if span is not whole:
                self._wanted.appendleft(_piece(whole, len(span.run), len(whole.run)))
                if result.logits is not None:
                    self._rows.append(result.logits)
                continue
            if self._rows:
                result = Result(torch.cat([*self._rows, result.logits]))
                self._rows = []
            self._results.append(result)
        if not self._wanted:
            results, self._results = self._results, []
            self._resume(lambda: self._program.send(results))

    @property
    def ready(self) -> bool:
        """Whether what it waits for has come."""
        return self._awaited is not None and self._awaited.done()

    def poll(self) -> None:
        """Go on when what the program waits for has come; its error is raised there."""
        while self.ready:
            error = self._awaited.exception()
            if error is not None:
                self._resume(lambda error=error: self._program.throw(error))
            else:
                result = self._awaited.result()
                self._resume(lambda result=result: self._program.send(result))

    def stop(self) -> None:
        """End the program where it stands; its `finally` blocks run."""
        self._wanted.clear()
        self._awaited, self.done = None, True
        self._program.close()

    def _resume(self, go: Callable[[], list[Span] | Future]) -> None:
        self._wanted.clear()
        self._awaited = None
        try:
            wanted = go()
        except StopIteration:
            self.done = True
            return
        if isinstance(wanted, Future):
            self._awaited = wanted
        else:
            self._wanted.extend(wanted)


def _piece(span: Span, first: int, last: int) -> Span:
    """Tokens first to last (exclusive) of a span; only the last piece has the last token's."""
    if first == 0 and last == len(span.run):
        return span
    run = span.run.cut(first, last)
    if last == len(span.run) or span.logits == 'all':
        return replace(span, run=run)
    return replace(span, run=run, logits='none', mass=None)


def prefill(block: KVBlock, view: View, ids: list[int], *,
            logits: Literal['none', 'last'] = 'last') -> Program[Result]:
    """Append `ids` to `block`."""
    result, = yield [Span(block, view, TokenRun.text(ids, block.end), logits)]
    return result


def generate(block: KVBlock, view: View, token: int, *, ends: frozenset[int],
             max_new_tokens: int, on_tokens: Callable[[list[int]], None] = lambda ids: None,
             mass: torch.Tensor | None = None) -> Program[tuple[list[int], str]]:
    """Decode greedily, `token` first, until a mark or the cap.

    Returns (ids, 'stop' or 'length'). The mark is not among the ids. The last id's keys are in
    `block` after 'stop', and not after 'length'.
    """
    ids: list[int] = []
    while token not in ends:
        ids.append(token)
        on_tokens(ids)
        if len(ids) == max_new_tokens:
            return ids, 'length'
        result, = yield [Span(block, view, TokenRun.text([token], block.end), 'last', mass)]
        token = result.token
    return ids, 'stop'


def score(model: StepModel, entries: list[Entry], logits: torch.Tensor,
          choices: list[list[int]], end: int) -> Program[tuple[list[float], list[KVBlock]]]:
    """Log-probability of each choice as a whole text, `end` mark included, and its block.

    Every choice is a short branch behind the same `entries`, whose keys are computed once. logits:
    [1, vocab] behind the entries, for every choice's first token.
    """
    view = lay_out(entries, model.scheme)
    first = logits[-1].log_softmax(-1)                                          # [vocab]
    blocks = [model.new_block(view.start('target'), capacity=len(ids)) for ids in choices]
    results = yield [Span(block, view, TokenRun.text(ids, block.end), 'all')
                     for block, ids in zip(blocks, choices, strict=True)]
    scores = []
    for ids, (rows, _) in zip(choices, results, strict=True):
        following = torch.tensor([*ids[1:], end], device=rows.device)           # [T]
        inside = rows.log_softmax(-1).gather(1, following[:, None]).sum()
        scores.append(float(first[ids[0]] + inside))
    return scores, blocks
