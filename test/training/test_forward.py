"""The training forward: packing, and what is learnt."""

from __future__ import annotations

import random

import numpy as np
import torch

from tww_ros.training import tabletop
from tww_ros.training.embedded import settings, untrained
from tww_ros.training.forward import Rotations, collate, forward, training_attention
from tww_ros.training.layout import IGNORED, plan
from tww_ros.training.trainer import accuracy


def samples() -> list[tabletop.Sample]:
    return [tabletop.sample(5, tabletop.SINGLE), tabletop.sample(6, tabletop.PERCEPTION),
            tabletop.sample(7, tabletop.MULTI), tabletop.sample(8, tabletop.LONG)]


def logits(model, plans) -> tuple[torch.Tensor, object]:
    batch = collate(plans, Rotations(model.hf.config.text_config), min_pixels=9_216,
                    max_pixels=9_216)
    with torch.no_grad(), training_attention(model.hf):
        return forward(model.hf, batch), batch


def test_packed_samples_do_not_see_each_other() -> None:
    model = untrained(seed=2)
    plans = [plan(sample, model.codec, settings()) for sample in samples()]
    together, _ = logits(model, plans)
    alone = torch.cat([logits(model, [one])[0] for one in plans])
    assert together.shape == alone.shape
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_gradients_reach_every_weight() -> None:
    model = untrained(seed=2)
    plans = [plan(sample, model.codec, settings()) for sample in samples()[:2]]
    batch = collate(plans, Rotations(model.hf.config.text_config), min_pixels=9_216,
                    max_pixels=9_216)
    with training_attention(model.hf):
        forward(model.hf, batch).square().mean().backward()
    still = [name for name, p in model.hf.named_parameters()
             if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_positions_far_beyond_the_first_table() -> None:
    text = untrained().hf.config.text_config
    cos, sin = Rotations(text).table(torch.tensor([[3, 50_000], [7, 50_001], [11, 50_002]]))
    theta, half = text.rope_parameters['rope_theta'], text.head_dim // 2
    assert text.rope_parameters['mrope_section'] == [12, 10, 10]
    for row, position in enumerate(((3, 7, 11), (50_000, 50_001, 50_002))):
        for pair in range(half):
            # Interleaved: t h w t h w …; the last two of 32 pairs are time's.
            axis = pair % 3 if pair < 30 else 0
            angle = position[axis] * theta ** (-2 * pair / text.head_dim)
            for column in (pair, pair + half):
                # The model's own frequencies are float32.
                assert abs(float(cos[row, column]) - np.cos(angle)) < 5e-3
                assert abs(float(sin[row, column]) - np.sin(angle)) < 5e-3


def test_only_notes_and_answers_are_learnt() -> None:
    model = untrained()
    sample = tabletop.sample(5, tabletop.SINGLE)
    planned = plan(sample, model.codec, settings())
    texts = {'note': [], 'answer': []}
    for span, what in zip(planned.spans, planned.what, strict=True):
        learnt = [i for i in range(span.first, span.last) if planned.labels[i] != IGNORED]
        if what.split(':')[0] in ('read', 'ask'):
            assert learnt == []
            continue
        ids = [planned.labels[i] for i in learnt]
        # Every label is the id of the next token, and they are consecutive up to the end.
        assert ids == planned.ids[learnt[0] + 1:learnt[-1] + 2]
        assert learnt == list(range(learnt[0], learnt[-1] + 1))
        texts[what.split(':')[0]].append(model.tokenizer.decode(ids))
    assert texts['note'] == [f'Focus: {segment.note}<EOT>' for segment in sample.segments]
    assert texts['answer'] == [
        f'Reasoning: {each.reasoning}\nAnswer: {each.answer}<EOQ>' for each in sample.rounds]


def test_accuracy_counts_whole_answers() -> None:
    model = untrained()
    plans = [plan(tabletop.sample(5, tabletop.SINGLE), model.codec, settings())]
    _, batch = logits(model, plans)
    count = len(batch.targets)
    assert all(good for _, good in accuracy(batch, torch.ones(count, dtype=torch.bool)))
    rng = random.Random(0)
    wrong = sorted(rng.sample(range(count), 25))
    right = torch.ones(count, dtype=torch.bool)
    right[wrong] = False
    spoilt = {int(batch.spans[i]) for i in wrong}
    found = [good for kind, good in accuracy(batch, right) if kind in ('note', 'answer')]
    assert found.count(False) == len(spoilt)
    ended = {int(batch.spans[i]) for i in wrong if batch.final[i]}
    found = [good for kind, good in accuracy(batch, right) if kind == 'final']
    assert found.count(False) == len(ended)


def test_same_seed_same_sample() -> None:
    one, other = (tabletop.sample(9, tabletop.MULTI) for _ in range(2))
    assert one.rounds == other.rounds
    assert [s.note for s in one.segments] == [s.note for s in other.segments]
    for first, second in zip(one.segments, other.segments, strict=True):
        for a, b in zip(first.patches, second.patches, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))
