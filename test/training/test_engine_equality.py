"""A training forward gives the logits that the engine gives on the same sample.

The engine runs the stream for real, frame by frame and token by token; only what it would say is
replaced by the sample's notes and answers. Its own logits are recorded before that.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from tww_ros.engine.engine import Engine
from tww_ros.model import prompts
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.training import tabletop
from tww_ros.training.embedded import settings, untrained
from tww_ros.training.forward import Rotations, collate, forward, training_attention
from tww_ros.training.layout import Plan, Sample, plan
from tww_ros.types import NS_PER_S, Frame, Question
from tww_ros.world.table import Pace, simulate


class Teller:
    """Stands in front of `model.step`: records its logits, and makes it say given texts."""

    def __init__(self, model: VideoLanguageModel, notes: list[str],
                 monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: dict[int, list[int]] = {}
        self.logits: dict[int, dict[int, torch.Tensor]] = {}
        self.blocks: list[object] = []
        self.answers: list[list[int]] = []
        self._notes = list(notes)
        self._model = model
        self._step = model.step
        self._to_say: dict[int, list[int]] = {}
        # By question block, what the answer begins with where it stands there: it is counted to
        # the answer's block, as it is in training.
        self._begun: dict[int, tuple[list[int], torch.Tensor, list[int]]] = {}
        monkeypatch.setattr(model, 'step', self._tell)

    def _tell(self, spans):
        results = self._step(spans)
        said = []
        for span, rows in zip(spans, results, strict=True):
            key = id(span.block)
            if key not in self.ids:
                self.blocks.append(span.block)  # kept, so that its id stays its own
                self._open(key, id(span.view.parts[-1].block) if span.view.parts else 0)
            self.ids[key] += span.run.ids
            if rows is None:
                said.append(None)
                continue
            for back, row in enumerate(reversed(rows), start=1):
                self.logits[key][len(self.ids[key]) - back] = row
            said.append(self._replaced(key, rows) if span.logits == 'last' else rows)
        return said

    def _open(self, key: int, before: int) -> None:
        self.ids[key], self.logits[key] = [], {}
        if before in self._begun:
            prefix, row, self._to_say[key] = self._begun.pop(before)
            self.ids[key] += prefix
            self.logits[key][len(prefix) - 1] = row

    def _replaced(self, key: int, rows: torch.Tensor) -> torch.Tensor:
        model, style = self._model, self._model.style
        if self.ids[key] == model.encode(style.note_prefix):
            note = self._notes.pop(0)
            self._to_say[key] = [*model.encode(style.note_text(note)),
                                 *model.encode(style.note_closer)]
        prefix = model.encode(style.answer_prefix)
        if self.ids[key] == prefix:
            self._to_say[key] = self.answers.pop(0)
        elif self.ids[key][-len(prefix):] == prefix:
            del self.ids[key][-len(prefix):]
            self._to_say[key] = self.answers.pop(0)
            said = self._said(key, rows)
            self._begun[key] = prefix, rows[-1], self._to_say.pop(key)
            return said
        return self._said(key, rows)

    def _said(self, key: int, rows: torch.Tensor) -> torch.Tensor:
        """Rows that make it say the next token of what it is to say."""
        if not self._to_say.get(key):
            return rows
        wanted = torch.full_like(rows, -1e4)
        wanted[:, self._to_say[key].pop(0)] = 0.0
        return wanted

    def behind(self, ids: list[int]) -> list[torch.Tensor | None]:
        """Logits behind each token of the next block with these ids; None where not asked for."""
        key = next(key for key, seen in self.ids.items() if seen == ids)
        del self.ids[key]
        return [self.logits[key].get(index) for index in range(len(ids))]


def run_engine(model: VideoLanguageModel, sample: Sample, config,
               monkeypatch: pytest.MonkeyPatch) -> tuple[Teller, Sample]:
    """Watch and ask as the sample says; the sample with the choices that the engine made."""
    teller = Teller(model, [segment.note for segment in sample.segments], monkeypatch)
    rounds = list(sample.rounds)
    asked = []
    with Engine(model, config) as engine:
        for number, segment in enumerate(sample.segments):
            stamps = (segment.start_s, segment.end_s)[:len(segment.patches[0].frames)]
            for stamp, image in zip(stamps, segment.patches[0].frames, strict=True):
                assert engine.feed(Frame(round(stamp * NS_PER_S), 'camera', image))
            while rounds and rounds[0].after == number + 1:
                due = rounds.pop(0)
                # With choices it says all but the answer proper.
                said = model.style.answer_text(due.reasoning, '' if due.choices else due.answer)
                closer = [] if due.choices else model.encode(model.style.answer_closer)
                teller.answers.append([*model.encode(said), *closer])
                answer = engine.ask(Question(due.question, session=due.session,
                                             choices=due.choices)).result(timeout=60.0)
                asked.append(dataclasses.replace(due, answer=answer.text))
                assert answer.reasoning == due.reasoning
                if not due.choices:
                    assert answer.text == due.answer
        assert engine.drain(60.0)
        notes = [segment.note for segment in engine.memory.segments()]
    assert notes == [segment.note for segment in sample.segments]
    return teller, dataclasses.replace(sample, rounds=tuple(asked))


def attended(planned: Plan) -> int:
    """Keys that spans see, but for their own."""
    return sum(len(span.view.keys) for span in planned.spans)


# Old pictures lose the tokens that tell nothing new; no search, which a plan cannot foretell.
DROP = {'watch.drop_threshold': 0.08, 'memory.recent_tokens': 44, 'memory.retrieved_segments': 0}


@pytest.mark.parametrize('drop', [{}, DROP], ids=['all', 'drop'])
@pytest.mark.parametrize('scheme', ['decoupled', 'continuous'])
# An engine's clock begins with its first frame.
@pytest.mark.parametrize('recipe', [dataclasses.replace(recipe, late_share=0.0)
                                    for recipe in (tabletop.SINGLE, tabletop.MULTI)],
                         ids=lambda r: r.name)
def test_same_logits(scheme: str, recipe: tabletop.Recipe, drop: dict[str, float],
                     monkeypatch: pytest.MonkeyPatch) -> None:
    base = untrained(seed=3)
    model = VideoLanguageModel(base.hf, base.tokenizer, name='test', scheme=scheme,
                               style=prompts.TWW)
    flat = settings().to_flat() | {'step.deterministic': True, 'memory.resident_tokens': 100,
                                   'memory.resident_note_tokens': 90,
                                   'answer.session_tokens': 120} | drop
    config = type(settings()).from_flat(flat)
    episode = simulate(11, 40.0, Pace(gap_s=1.0))
    sample = tabletop.stream(episode, random.Random(2), recipe, 14, 96)
    # The deterministic engine has all notes written before it takes a question.
    sample = dataclasses.replace(sample, rounds=tuple(
        dataclasses.replace(due, noted=due.after) for due in sample.rounds))
    assert len(sample.rounds) >= 8
    teller, told = run_engine(model, sample, config, monkeypatch)

    planned = plan(told, model.codec, config)
    whole = plan(told, model.codec, dataclasses.replace(
        config, watch=dataclasses.replace(config.watch, drop_threshold=0.0)))
    assert (attended(planned) != attended(whole)) == bool(drop)
    batch = collate([planned], Rotations(model.hf.config.text_config), min_pixels=9_216,
                    max_pixels=9_216)
    with torch.no_grad(), training_attention(model.hf):
        logits = forward(model.hf, batch)
    ours = dict(zip(batch.chosen.tolist(), logits, strict=True))

    compared, worst = 0, 0.0
    mark, = model.encode('\nAnswer:')
    for span, what in zip(planned.spans, planned.what, strict=True):
        ids = planned.ids[span.first:span.last]
        if what.split(':')[0] not in ('note', 'answer'):
            continue
        if what.endswith(':choice'):
            # The engine keeps the reasoning in a block of its own, and each option behind it in
            # one; only the chosen one is closed.
            option = ids.index(mark) + 1
            theirs = teller.behind(ids[:option]) + teller.behind(ids[option:])
        else:
            theirs = teller.behind(ids)
        for index, row in enumerate(theirs):
            if row is not None and span.first + index in ours:
                worst = max(worst, float((ours[span.first + index] - row).abs().max()))
                compared += 1
    assert compared > 60
    assert worst < 2e-4
