"""M-RoPE against transformers for small positions, and against exact fractions for hour 10."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from tww_ros import load_model
from tww_ros.errors import ModelError
from tww_ros.model.positions import (
    MRope,
    patch_positions,
    rotate,
    rotate_signed,
    text_positions,
)
from tww_ros.model.run import TokenRun

CPU = torch.device('cpu')
# 40 digits, more than 10 hours of positions can use up.
TWO_PI = 2 * Fraction('3.1415926535897932384626433832795028841971')
# A patch a second: some 13 tokens of time stamp, 2 marks, 14 for 448 px.
POSITIONS_PER_S = 29
HOURS_10 = 10 * 3_600 * POSITIONS_PER_S


def text_config(**changes):
    return Qwen3VLTextConfig(**{
        'hidden_size': 64, 'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 128,
        'num_hidden_layers': 1, 'rope_parameters': {
            'rope_type': 'default', 'rope_theta': 5_000_000.0, 'mrope_section': [24, 20, 20]},
        **changes})


# The sizes of the released checkpoints, and those of tiny-random.
CONFIGS = {
    'released': text_config(),
    'tiny': text_config(head_dim=32, rope_parameters={
        'rope_type': 'default', 'rope_theta': 5_000_000.0, 'mrope_section': [6, 5, 5]}),
}


@functools.cache
def model():
    return load_model('tiny-random')


def axis_of(index, section):
    """0 t, 1 h, 2 w: interleaved t h w while the sections of h and w last."""
    if index % 3 == 1 and index < 3 * section[1]:
        return 1
    return 2 if index % 3 == 2 and index < 3 * section[2] else 0


def exact_table(config, positions):
    """cos and sin [T, D] from exact fractions of the checkpoint's float32 frequencies."""
    stock = Qwen3VLTextRotaryEmbedding(config)
    section = config.rope_parameters['mrope_section']
    cos, sin = [], []
    for t, h, w in positions.T.tolist():
        angles = []
        for index, frequency in enumerate(stock.inv_freq.tolist()):
            place = (t, h, w)[axis_of(index, section)]
            angles.append(float(Fraction(place) * Fraction(frequency) % TWO_PI))
        cos.append([math.cos(a) for a in angles] * 2)
        sin.append([math.sin(a) for a in angles] * 2)
    return torch.tensor(cos, dtype=torch.float64), torch.tensor(sin, dtype=torch.float64)


def places(start, count=24, seed=0):
    """Positions around `start`, each axis its own."""
    return start + np.random.default_rng(seed).integers(0, 40, (3, count))


@pytest.mark.parametrize('name', CONFIGS)
def test_equals_transformers_for_small_positions(name):
    config, positions = CONFIGS[name], places(0, 60)
    ours = MRope(config, CPU).table(positions, torch.float32)
    stock = Qwen3VLTextRotaryEmbedding(config)(
        torch.zeros(1), torch.from_numpy(positions)[:, None])
    for mine, theirs in zip(ours, stock, strict=True):
        assert (mine - theirs[0]).abs().max() < 1e-5


@pytest.mark.parametrize('name', CONFIGS)
def test_rotates_as_transformers_does(name):
    config, positions = CONFIGS[name], places(3, 10)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 4, 10, config.head_dim, generator=generator)
    cos, sin = Qwen3VLTextRotaryEmbedding(config)(q, torch.from_numpy(positions)[:, None])
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    table = MRope(config, CPU).table(positions, torch.float32)
    assert (rotate(q[0], *table) - expected[0][0]).abs().max() < 1e-5
    assert (rotate(k[0], *table) - expected[1][0]).abs().max() < 1e-5


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('start', [60 * POSITIONS_PER_S, HOURS_10, 100 * HOURS_10])
def test_hour_10_is_as_exact_as_minute_1(name, start):
    config, positions = CONFIGS[name], places(start)
    exact = exact_table(config, positions)
    single = MRope(config, CPU).table(positions, torch.float32)
    double = MRope(config, CPU).table(positions, torch.float64)
    for e, s, d in zip(exact, single, double, strict=True):
        assert (e - s).abs().max() < 6.1e-8                      # rounding to float32
        assert (e - d).abs().max() < 1e-7 * start / HOURS_10 / 100 + 1e-12


def test_stock_float32_angles_would_be_off_at_hour_10():
    """Why our own table: the stock one is wrong in the second digit there."""
    config, positions = CONFIGS['released'], places(HOURS_10)
    cos, sin = Qwen3VLTextRotaryEmbedding(config)(
        torch.zeros(1), torch.from_numpy(positions)[:, None])
    exact = exact_table(config, positions)
    assert max((exact[0] - cos[0]).abs().max(), (exact[1] - sin[0]).abs().max()) > 0.02


@pytest.mark.parametrize('start', [0, HOURS_10])
def test_scores_depend_on_differences_only(start):
    """q at start + 50 and k at start: the same product anywhere in the stream, with any shift."""
    config = CONFIGS['released']
    rope = MRope(config, CPU)
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 8, 24, config.head_dim, generator=generator)
    at = places(0)
    exact_q, exact_k = exact_table(config, at + 50), exact_table(config, at)
    expected = rotate(q.double(), *exact_q) @ rotate(k.double(), *exact_k).transpose(1, 2)
    for shift in (0, 7, -13, start // 2):
        stored = rope.table(at + start - shift, torch.float32)
        asked = rope.table(at + start + 50 - shift, torch.float32)
        scores = rotate(q, *asked) @ rotate(k, *stored).transpose(1, 2)
        assert (scores - expected).abs().max() < 1e-4
        assert expected.abs().max() > 10


@pytest.mark.parametrize('name', CONFIGS)
def test_tokens_are_moved_as_if_they_had_been_written_there(name):
    config, positions = CONFIGS[name], places(HOURS_10, 6)
    rope, shifts, counts = MRope(config, CPU), np.array([0, -9, HOURS_10]), np.array([2, 1, 3])
    keys = torch.randn(2, 6, config.head_dim, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(0))                # [h, T, D]
    there = rotate(keys, *exact_table(config, positions))
    moved = rotate_signed(there, *rope.moves(shifts, counts, torch.float64))
    expected = rotate(keys, *exact_table(config, positions + shifts.repeat(counts)))
    assert (moved - expected).abs().max() < 1e-6


@pytest.mark.parametrize('grids', [
    [(2, 3)], [(1, 1), (4, 2)], [(7, 2), (7, 2), (7, 2)], [(3, 3), (1, 6), (6, 1), (2, 2)]])
def test_positions_of_text_and_patches_equal_get_rope_index(grids):
    ids, kinds, ours, place = [], [], [], 0
    for number, (rows, columns) in enumerate(grids):
        text = 3 + number
        ours.append(text_positions(text, place))
        patch, after = patch_positions(rows, columns, place + text)
        ours += [patch, text_positions(1, after)]
        place = after + 1
        ids += [1] * text + [model().video_pad_id] * (rows * columns) + [1]
        kinds += [0] * text + [2] * (rows * columns) + [0]
    grid = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    expected, deltas = model().hf.model.get_rope_index(
        torch.tensor([ids]), torch.tensor([kinds]), video_grid_thw=grid)
    np.testing.assert_array_equal(np.concatenate(ours, axis=1), expected[:, 0].numpy())
    assert place == len(ids) + int(deltas)


def test_patch_positions_by_hand():
    positions, after = patch_positions(2, 3, 10)
    assert positions.tolist() == [[10] * 6, [10, 10, 10, 11, 11, 11], [10, 11, 12] * 2]
    assert after == 13
    assert text_positions(3, 5).tolist() == [[5, 6, 7]] * 3


def test_a_run_can_be_cut_anywhere():
    """Every pair of cuts: ids, positions, vision rows and the next free position."""
    patch, after = patch_positions(2, 3, 2)
    positions = np.concatenate((text_positions(2, 0), patch, text_positions(1, after)), axis=1)
    visual = np.array([False] * 2 + [True] * 6 + [False])
    tokens = torch.arange(6.0)[:, None]
    run = TokenRun(tuple(range(9)), positions, after + 1, visual, tokens, (tokens + 10,))
    for first in range(9):
        for last in range(first + 1, 10):
            part = run.cut(first, last)
            assert part.ids == tuple(range(9))[first:last]
            np.testing.assert_array_equal(part.positions, positions[:, first:last])
            rows = [i - 2 for i in range(first, last) if 2 <= i < 8]
            if rows:
                assert part.tokens[:, 0].tolist() == rows
                assert part.deepstack[0][:, 0].tolist() == [10 + row for row in rows]
                assert part.visual.sum() == len(rows)
            else:
                assert part.visual is None or not part.visual.any()
            free = max(max(axis[:last]) for axis in positions.tolist()) + 1
            assert part.end == (6 if last == 9 else free)


def test_scaled_rope_is_refused():
    config = text_config()
    config.rope_parameters = {**config.rope_parameters, 'rope_type': 'yarn', 'factor': 2.0}
    with pytest.raises(ModelError, match='expected rope_type "default", got \'yarn\''):
        MRope(config, CPU)
