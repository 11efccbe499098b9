"""Scores against values known from elsewhere, or computed in another way here."""

from __future__ import annotations

import math

import pytest

from tww_ros.evaluation.scoring import (
    Share,
    calibration_error,
    describe_error,
    first_mentions,
    is_right,
    normalise,
    reliability,
    share,
)


@pytest.mark.parametrize('given, truth, right', [
    ('red ball', 'red ball', True), ('The red ball.', 'red ball', True),
    ('  A  COVER ', 'a cover', True), ('At 14 s!', 'at 14 s', True),
    ('red', 'red ball', False), ('the red ball and more', 'red ball', False),
    ('at 4 s', 'at 14 s', False), ('center left', 'center', False), ('', 'no', False),
    ('another ball', 'ball', False),
])
def test_answers_are_compared_as_words(given, truth, right):
    assert is_right(given, truth) is right


def test_normalised_text():
    assert normalise('The  cup, an "old" one: A.') == 'cup old one'


@pytest.mark.parametrize('right, count, low, high', [
    # R: prop.test(k, n, correct = FALSE)
    (0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0),
    (970, 1000, 0.95755, 0.97890), (1, 1, 0.20654, 1.0),
])
def test_interval_has_known_values(right, count, low, high):
    assert Share(right, count).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize('right, count', [(3, 7), (890, 1000), (1, 400), (399, 400)])
def test_interval_is_all_shares_within_its_deviations(right, count):
    """Walk over all shares: those for which the observed one is no more than 1.96 σ away."""
    observed = right / count
    inside = [p / 100_000 for p in range(100_001)
              if abs(observed - p / 100_000)
              <= 1.959964 * math.sqrt(p / 100_000 * (1 - p / 100_000) / count)]
    assert Share(right, count).interval == pytest.approx((inside[0], inside[-1]), abs=2e-5)


def test_share_of_nothing_is_no_number():
    assert math.isnan(Share(0, 0).value) and Share(0, 0).interval == (0.0, 1.0)
    assert share(x > 1 for x in (1, 2, 3)) == Share(2, 3)


def test_calibration_error_by_hand():
    # Two bins: 0.2, 0.4 → mean 0.3, one of two right; 0.6, 0.8, 1.0 → mean 0.8, one of three.
    tops, verdicts = [0.2, 0.6, 0.4, 0.8, 1.0], [True, False, False, True, False]
    bins = reliability(tops, verdicts, 2)
    assert [(part.probability, part.right) for part in bins] == [
        (pytest.approx(0.3), Share(1, 2)), (pytest.approx(0.8), Share(1, 3))]
    expected = (2 * abs(0.5 - 0.3) + 3 * abs(1 / 3 - 0.8)) / 5
    assert calibration_error(tops, verdicts, 2) == pytest.approx(expected)


def test_calibration_error_of_the_perfect_and_of_the_vain():
    assert calibration_error([0.75] * 4, [True, True, True, False], 10) == pytest.approx(0.0)
    assert calibration_error([1.0] * 5, [False] * 5, 15) == pytest.approx(1.0)
    assert math.isnan(calibration_error([], [], 10))


def test_first_mentions_of_things():
    notes = ['start: nothing', '#1 red ball put center left at 4 s', 'nothing new',
             'red ball moved back right from center left at 9 s',
             'red ball moved center from back right at 12 s; '
             'blue box moved back right from center at 12 s',
             'blue box covered back right at 20 s; #2 red box put center left at 20 s']
    assert first_mentions(notes) == [False, True, False, False, True, True]


@pytest.mark.parametrize('perfect, written, error', [
    ('#3 red ball put center left at 14 s', '#3 blue ball put center at 14 s',
     'put: colour, place'),
    ('#3 red ball put center left at 14 s', '#4 red cup put center left at 16 s',
     'put: count, shape, time'),
    ('red ball taken center at 14 s', 'nothing new', 'taken missed'),
    ('nothing new', 'red ball taken center at 14 s', 'taken invented'),
    ('red ball moved back left from center at 4 s', 'red ball taken center at 4 s',
     'moved told as taken'),
    ('start: nothing; #1 red ball put center at 0 s', 'start: nothing',
     'start + put told as start'),
    ('red ball covered center at 4 s', 'red ball ball covered center at 4 s',
     'covered: other words'),
    ('red ball covered center at 4 s', '', 'covered told as nothing'),
])
def test_what_is_wrong_with_a_note(perfect, written, error):
    assert describe_error(perfect, written) == error
