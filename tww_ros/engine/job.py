"""Jobs: work for the language model written as step programs.

A step program is a generator: it yields the spans that it wants computed and is sent their logits,
one packed step later; or it yields a Future and is sent its result when it has come. So a note or
an answer reads from top to bottom like straight code, while the reasoner interleaves the spans of
all jobs in the same steps. Programs here know nothing of sessions, memory or threads.

    letters   T tokens of a run   vocab size of the vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

import torch

from tww_ros.memory.block import KVBlock
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import Span, TokenRun

Logits = list[torch.Tensor | None]
Result = TypeVar('Result')
Program = Generator['list[Span] | Future', Any, Result]


class Job:
    """A running step program. `spans` is what it waits for in the next step; there are none while
    it waits for something else (`poll`), and when it is `done`."""

    def __init__(self, program: Program[None]) -> None:
        self._program = program
        self._awaited: Future | None = None
        self.spans: list[Span] = []
        self.done = False
        self._resume(lambda: next(program))

    def advance(self, logits: Logits) -> None:
        """Hand over the results of `spans` and run to the next ones."""
        self._resume(lambda: self._program.send(logits))

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
        self.spans, self._awaited, self.done = [], None, True
        self._program.close()

    def _resume(self, go: Callable[[], list[Span] | Future]) -> None:
        self.spans, self._awaited = [], None
        try:
            wanted = go()
        except StopIteration:
            self.done = True
            return
        if isinstance(wanted, Future):
            self._awaited = wanted
        else:
            self.spans = wanted


def prefill(block: KVBlock, view: View, ids: list[int], chunk: int, *,
            logits: Literal['none', 'last'] = 'last', mass: torch.Tensor | None = None
            ) -> Program[torch.Tensor | None]:
    """Append `ids` to `block`, at most `chunk` a step; returns the last logits [1, vocab]."""
    run = TokenRun.text(ids, block.end)
    result: Logits = [None]
    for first in range(0, len(run), chunk):
        last = min(len(run), first + chunk)
        wanted = logits if last == len(run) else 'none'
        result = yield [Span(block, view, run.cut(first, last), wanted,
                             mass if wanted == 'last' else None)]
    return result[0]


def generate(block: KVBlock, view: View, logits: torch.Tensor, *, ends: frozenset[int],
             max_new_tokens: int, on_tokens: Callable[[list[int]], None] = lambda ids: None,
             mass: torch.Tensor | None = None) -> Program[tuple[list[int], str]]:
    """Decode greedily from `logits` [1, vocab] until a mark or the cap.

    Returns (ids, 'stop' or 'length'). The mark is not among the ids. The last id's keys are in
    `block` after 'stop', and not after 'length'.
    """
    ids: list[int] = []
    while True:
        token = int(logits[-1].argmax())
        if token in ends:
            return ids, 'stop'
        ids.append(token)
        on_tokens(ids)
        if len(ids) == max_new_tokens:
            return ids, 'length'
        logits, = yield [Span(block, view, TokenRun.text([token], block.end), 'last', mass)]


def score(model: StepModel, entries: list[Entry], logits: torch.Tensor,
          choices: list[list[int]], end: int,
          budget: int) -> Program[tuple[list[float], list[KVBlock]]]:
    """Log-probability of each choice as a whole text, `end` mark included, and its block.

    Every choice is a short branch behind the same `entries`, whose keys are computed once; as many
    as fit into `budget` tokens share a step. logits: [1, vocab] behind the entries, for every
    choice's first token.
    """
    view = lay_out(entries, model.scheme)
    first = logits[-1].log_softmax(-1)                                          # [vocab]
    scores: list[float] = []
    blocks: list[KVBlock] = []
    waiting = list(choices)
    while waiting:
        taken = [waiting.pop(0)]
        while waiting and sum(map(len, taken)) + len(waiting[0]) <= budget:
            taken.append(waiting.pop(0))
        spans = []
        for ids in taken:
            block = model.new_block(view.start('target'), capacity=len(ids))
            spans.append(Span(block, view, TokenRun.text(ids, block.end), 'all'))
        results = yield spans
        for ids, span, rows in zip(taken, spans, results, strict=True):
            following = torch.tensor([*ids[1:], end], device=rows.device)       # [T]
            inside = rows.log_softmax(-1).gather(1, following[:, None]).sum()
            scores.append(float(first[ids[0]] + inside))
            blocks.append(span.block)
    return scores, blocks
