"""Rankings of segments for a question: fused, and by keys against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tww_ros.memory.retrieval import (
    KeySummary,
    KeyTable,
    QueryTap,
    asks_for_first,
    fuse,
    summary_layers,
)

LAYERS, HEADS, GROUP, HEAD_DIM = 5, 2, 3, 8


@pytest.mark.parametrize(('text', 'first'), [
    ('Which object was put down first?', True), ('What was put down LAST?', False),
    ('Where is it now?', False), ('What was the first thing, and where is it now?', False),
    ('thirsty?', False), ('', False),
])
def test_which_end_of_time_is_meant(text, first):
    assert asks_for_first(text) == first


def test_what_two_rankings_agree_on_comes_first():
    assert fuse([[1, 2, 3], [4, 2, 5]], 3) == [2, 1, 4]
    assert fuse([[1, 2], []], 8) == [1, 2]
    assert fuse([], 8) == []


@pytest.mark.parametrize(('layers', 'expected'), [
    (1, (0,)), (2, (0, 1)), (5, (1, 2, 3, 4)), (36, (9, 17, 26, 35))])
def test_summary_layers(layers, expected):
    assert summary_layers(layers) == expected


def test_mean_of_keys_over_chunks():
    layers = summary_layers(LAYERS)
    keys = torch.randn(LAYERS, HEADS, 7, HEAD_DIM)
    summary = KeySummary(layers)
    assert summary.mean() is None
    for chunk in (slice(0, 3), slice(3, 3), slice(3, 7)):
        for again in (True, False):
            # The first time the step fails behind its second layer.
            for layer in range(2 if again else LAYERS):
                summary.add(layer, keys[layer, :, chunk])
        summary.commit()
    expected = keys.double().mean(2)[list(layers)]
    assert summary.mean().shape == (len(layers), HEADS, HEAD_DIM)
    assert torch.allclose(summary.mean().double(), expected, atol=1e-6)


def test_ranking_equals_float64():
    rng = np.random.default_rng(0)
    layers = summary_layers(LAYERS)
    means = rng.normal(size=(100, len(layers), HEADS, HEAD_DIM))
    queries = rng.normal(size=(LAYERS, HEADS * GROUP, 6, HEAD_DIM))
    table, tap = KeyTable(), QueryTap(layers)
    for segment_id in range(100):
        table.add(1_000 + segment_id, torch.from_numpy(means[segment_id]).float())
    for removed in (0, 50, 99):
        table.remove(1_000 + removed)
    table.remove(7)
    for piece in (slice(0, 4), slice(4, 6)):
        for layer in range(LAYERS):
            tap.add(layer, torch.from_numpy(queries[layer][:, piece]))
    left = [n for n in range(100) if n not in (0, 50, 99)]
    held = means[left].astype(np.float16).astype(np.float64)
    centred = held - held.mean(0)
    scores = np.zeros(len(left))
    for number in range(len(left)):
        for place, layer in enumerate(layers):
            for head in range(HEADS * GROUP):
                products = queries[layer, head] @ centred[number, place, head // GROUP]
                scores[number] += products.max()
    expected = [1_000 + left[n] for n in np.argsort(-scores)]
    assert table.rows().ranking(tap) == expected and len(table) == 97
    assert KeyTable().rows().ranking(tap) == []
