"""Streams through the real engine: who knows everything is right, who knows nothing is wrong."""

from __future__ import annotations

import dataclasses

import pytest

from tww_ros.config import EngineConfig
from tww_ros.errors import EvaluationError
from tww_ros.evaluation.protocol import LOTS, plan_streams
from tww_ros.evaluation.rows import EvalOptions, Watch, config_of
from tww_ros.evaluation.runner import run_stream
from tww_ros.model import prompts
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.training.embedded import untrained

from .conftest import SMALL, WATCH, Oracle, watch_config


def config(**settings):
    flat = {name.replace('__', '.'): value for name, value in settings.items()}
    return config_of(Oracle([]), Watch(''), EvalOptions('', settings=flat))


def run(model, plans, **options):
    settings = options.pop('settings', config())
    return [run_stream(model, settings, plan, LOTS, stream=number, **options)
            for number, plan in enumerate(plans)]


@pytest.mark.parametrize('live', [False, True])
def test_who_knows_everything_is_always_right(plans, live):
    watched = run(Oracle(plans), plans, live=live)
    outcomes = [outcome for each in watched for outcome in each.outcomes]
    planned = [entry for plan in plans for moment in plan.moments for entry in moment.questions]
    assert [outcome.planned for outcome in outcomes] == planned and len(planned) > 40
    assert all(outcome.right for outcome in outcomes)
    for outcome in outcomes:
        made = outcome.planned.question
        assert outcome.text == made.answer
        assert len(outcome.probabilities) == len(made.choices)
        assert outcome.finish_reason == ('choice' if made.choices else 'stop')
        assert outcome.tokens == len(made.answer)               # bytes are its tokens


def test_who_knows_nothing_is_never_right(plans):
    outcomes = [outcome for each in run(Oracle(plans, right=False), plans)
                for outcome in each.outcomes]
    assert outcomes and not any(outcome.right for outcome in outcomes)


def test_notes_stand_beside_the_perfect_ones(plans):
    for watched, plan in zip(run(Oracle(plans, note='nothing new'), plans), plans, strict=True):
        assert [note.perfect for note in watched.notes] == [s.note for s in plan.segments]
        assert {(note.written, note.tokens) for note in watched.notes} == {('nothing new', 11)}
    assert all(each.notes == () for each in run(Oracle(plans), plans,
                                                settings=config(note__enabled=False)))


@pytest.mark.parametrize('live', [False, True])
def test_the_newest_note_is_missing_only_live(plans, live):
    """Count the parts that the first question of each moment sees: header, segments, notes."""
    plan, parts = plans[0], {}

    def look(spans):
        for span in spans:
            text = model.decode(span.run.ids)
            if text in first and text not in parts:
                parts[text] = len(span.view.parts)

    model = Oracle(plans, note='seen', before_step=look)
    first = {}
    for moment in plan.moments:
        made = moment.questions[0].question
        # The first step of an answer takes the whole question.
        text = model.decode(model.encode_user(model.style.question(made.text, made.choices))
                            + model.encode(model.style.question_tail))
        first.setdefault(text, moment.segment + 1)
    run_stream(model, config(step__chunk_tokens=4_096), plan, ('single', 'present', 'far'),
               live=live)
    single = {text: count for text, count in first.items() if text in parts}
    assert single
    for text, segments in single.items():
        assert parts[text] == 1 + 2 * segments - live


def test_recent_frames_are_all_that_is_seen(plans):
    plan, seen = plans[0], []

    def look(spans):
        # A question's step is the one that reads no patch and stands on more than the header.
        seen.extend(len(span.view.parts) for span in spans
                    if span.run.visual is None and span.logits == 'last')

    settings = config(note__enabled=False, memory__read_window_tokens=0,
                      step__chunk_tokens=4_096)
    run_stream(Oracle(plans, before_step=look), settings, plan, ('single',), recent_frames=4)
    # Header and at most three segments (of 2, 1 and 1 frames), then also the question itself.
    assert seen and max(seen) <= 1 + 3 + 1


def test_a_plan_for_other_segments_is_noticed(plans):
    settings = EngineConfig.from_flat({**WATCH, 'watch.segment_s': 2.5})
    with pytest.raises(EvaluationError, match='segments'):
        run_stream(Oracle(plans), settings, plans[0], ('single',))


def test_a_refused_question_is_a_wrong_answer(plans):
    settings = config(answer__max_question_tokens=60)
    outcomes = [o for each in run(Oracle(plans), plans, settings=settings)
                for o in each.outcomes]
    failed = [o for o in outcomes if o.failed]
    assert failed and len(failed) < len(outcomes)
    assert all('too long' in o.failed and not o.right and o.tokens == 0 for o in failed)
    # A conversation goes on without the round that was refused.
    assert all(o.right for o in outcomes if not o.failed)


def test_deterministic_is_the_same_bit_for_bit():
    base = untrained(seed=5)
    model = VideoLanguageModel(base.hf, base.tokenizer, name='test', scheme='decoupled',
                               style=prompts.TWW, settings=base.settings)
    options = EvalOptions('', mode='deterministic', settings={
        'answer.max_new_tokens': 3, 'note.max_new_tokens': 2})
    small = dataclasses.replace(SMALL, segments=6, moments=2, questions=8, streams=1)
    settings = config_of(model, Watch(''), options)
    assert settings.step.deterministic and settings.watch.segment_s == watch_config().segment_s
    plan, = plan_streams(small, settings.watch, model.temporal_patch_size)
    first, second = (run_stream(model, settings, plan, LOTS) for _ in range(2))
    assert first == second and len(first.outcomes) > 16
