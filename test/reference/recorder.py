"""Recorder: what an engine asked of its model, block by block.

It stands in front of `model.step` and keeps, for every KV block in the order of first use, the
token ids that were appended, the logits that were handed out and the block itself. It looks at no
positions and no views: those are what tests compute themselves.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch


@dataclass
class Recorded:
    """One block. logits: [vocab] behind token i, where they were asked for."""

    block: object
    ids: list[int] = field(default_factory=list)
    logits: dict[int, torch.Tensor] = field(default_factory=dict)


class Recorder:
    """Records the steps of `model` until the test's monkeypatch is undone."""

    def __init__(self, model, monkeypatch) -> None:
        self.blocks: dict[int, Recorded] = {}
        self.threads: set[int] = set()
        self.steps: list[list] = []
        self._step = model.step
        monkeypatch.setattr(model, 'step', self._record)

    def list(self) -> list[Recorded]:
        """Every block, in the order of first use."""
        return list(self.blocks.values())

    def _record(self, spans):
        self.threads.add(threading.get_ident())
        results = self._step(spans)
        self.steps.append(list(spans))
        for span, rows in zip(spans, results, strict=True):
            seen = self.blocks.setdefault(id(span.block), Recorded(span.block))
            seen.ids += span.run.ids
            for back, row in enumerate(reversed(rows if rows is not None else ()), start=1):
                seen.logits[len(seen.ids) - back] = row
        return results
