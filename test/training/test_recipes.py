"""The mixtures of `tww train`: what the stages are made of."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from tww_ros.training import tabletop
from tww_ros.training.embedded import settings, untrained
from tww_ros.training.recipes import (
    HARD,
    LONG_QUIZ,
    LONG_TALK,
    MIXTURES,
    QUIZ,
    TALK,
    TabletopBatches,
    thinner,
    with_found,
    without_notes,
)
from tww_ros.training.train import STAGES
from tww_ros.world.questions import KINDS, KINDS_OF

SEED = 7


def test_every_stage_has_a_mixture() -> None:
    assert set(MIXTURES) == set(STAGES)
    for mixture in MIXTURES.values():
        assert sum(mixture.values()) == pytest.approx(1.0)


def test_samples_of_one_seed_differ_by_recipe() -> None:
    # The name is part of the seed: two recipes of one name would see the same streams.
    names = [recipe.name for recipe in {recipe for mixture in MIXTURES.values()
                                        for recipe in mixture}]
    assert len(names) == len(set(names))


def test_a_glance_asks_for_what_can_be_seen_now_with_few_notes() -> None:
    bare = 0
    for seed in range(12):
        made = tabletop.sample(seed, tabletop.GLANCE)
        assert len(made.segments) <= 3 and all(segment.patches for segment in made.segments)
        assert {question.kind for question in made.rounds} <= set(KINDS_OF['present'])
        bare += any(question.noted == 0 for question in made.rounds)
    assert bare >= 1


def test_what_is_hard_is_asked_twice_as_often() -> None:
    assert set(HARD) <= set(KINDS)
    asked = Counter(one.kind for seed in range(12) for one in tabletop.sample(seed, QUIZ).rounds)
    hard, easy = (sum(asked[kind] for kind in kinds) / len(kinds)
                  for kinds in (HARD, set(KINDS) - set(HARD)))
    assert 1.4 * easy < hard < 2.8 * easy


@pytest.mark.parametrize('many, few', [(QUIZ, tabletop.SINGLE), (TALK, tabletop.MULTI),
                                       (LONG_QUIZ, tabletop.LONG_SINGLE),
                                       (LONG_TALK, tabletop.LONG)])
def test_streams_with_many_questions(many: tabletop.Recipe, few: tabletop.Recipe) -> None:
    made = [sum(len(tabletop.sample(seed, recipe).rounds) for seed in range(3))
            for recipe in (many, few)]
    assert made[0] > made[1]
    for one in tabletop.sample(SEED, many).rounds:
        assert one.after >= 1 and one.noted <= one.after
    if many.single:
        sessions = [one.session for one in tabletop.sample(SEED, many).rounds]
        assert len(sessions) == len(set(sessions))


@pytest.mark.parametrize('stage', MIXTURES)
def test_without_notes_there_are_questions_and_all_of_the_video(stage) -> None:
    for recipe in without_notes(MIXTURES[stage]):
        made = [tabletop.sample(seed, recipe) for seed in range(SEED, SEED + 4)]
        assert all(segment.patches for one in made for segment in one.segments)
        if recipe.name == 'perception':
            assert all(one.segments[0].note for one in made)
        else:
            # Of a stream with a hand at work at its end nothing may be asked.
            assert any(one.rounds for one in made)
            assert all(segment.note is None for one in made for segment in one.segments)


def test_every_batch_has_something_to_learn() -> None:
    """Of these streams some can never be asked about; without notes nothing is left of them."""
    batches = TabletopBatches(untrained(), settings(), tokens=1, notes=False)
    assert all(len(batches.batch('multi', number).targets) for number in range(12))


def test_what_a_search_brings_back_is_of_the_past_and_often_proves_something() -> None:
    proving = 0
    for seed in range(6):
        made = tabletop.sample(seed, QUIZ)
        told = with_found(made, random.Random(seed))
        assert [dataclasses.replace(each, found=()) for each in told.rounds] == list(made.rounds)
        for each in told.rounds:
            assert set(each.found) <= set(range(each.after))
            # Those of one moment share what they look at.
            assert each.found == next(other for other in told.rounds
                                      if other.after == each.after).found
            proving += bool(set(each.found) & set(each.proof))
    assert proving >= 10


def test_thinner_settings_change_nothing_but_the_memory_that_questions_see() -> None:
    plain, drawn = settings(), [thinner(settings(), random.Random(seed)) for seed in range(20)]
    assert len({(one.watch.drop_threshold, one.memory.recent_tokens) for one in drawn}) > 3
    for one in drawn:
        assert one.memory.recent_tokens < one.memory.resident_tokens
        changed = {name for name, value in one.to_flat().items() if plain.to_flat()[name] != value}
        assert {'memory.recent_tokens'} <= changed <= {'memory.recent_tokens',
                                                       'watch.drop_threshold'}
