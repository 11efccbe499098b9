"""Constrained answers: one of the choices, with a probability for each, over memory as it is."""

import math

import pytest
import torch
from engine.harness import WAIT_S, clip, until, watch

from tww_ros import Question, load_model
from tww_ros.model.scripted import ScriptedModel


def ask(engine, choices, text='which?', **options):
    return engine.ask(Question(text, choices=choices, **options))


def record(model, monkeypatch):
    """The token ids of every span of every step from now on."""
    steps, step = [], model.step

    def recorded(spans):
        steps.append([span.run.ids for span in spans])
        return step(spans)

    monkeypatch.setattr(model, 'step', recorded)
    return steps


@pytest.mark.parametrize(('says', 'choices'), [
    ('red', ('red', 'redder', 'blue')), ('redder', ('red', 'redder', 'blue')),
    ('blue', ('red', 'redder', 'blue')), ('yes', ('no', 'yes')), ('né', ('n', 'né', 'néé'))])
def test_the_likeliest_is_chosen_also_when_one_begins_with_another(start, says, choices):
    engine = start(ScriptedModel(answer=says))
    watch(engine, clip(0, 2))
    answer = ask(engine, choices).result(WAIT_S)
    assert (answer.text, answer.finish_reason) == (says, 'choice')
    assert len(answer.choice_probabilities) == len(choices)
    assert sum(answer.choice_probabilities) == pytest.approx(1)
    assert answer.choice_probabilities[choices.index(says)] > 0.9
    assert answer.token_ids == tuple(engine.model.encode_user(says))
    assert answer.completion_tokens == len(answer.token_ids)


def test_a_choice_comes_as_one_piece(start):
    engine = start(ScriptedModel(answer='blue'))
    watch(engine, clip(0, 2))
    piece, = engine.ask_stream(Question('which?', choices=('red', 'blue')), WAIT_S)
    assert piece.text == piece.answer.text == 'blue'
    assert piece.answer.reasoning == ''


@pytest.mark.parametrize(('prompts', 'positions'), [('stock', 'continuous'), ('tww', 'decoupled'),
                                                    ('tww', 'continuous')])
def test_memory_and_question_are_computed_once_for_all_choices(start, monkeypatch, prompts,
                                                              positions):
    model = load_model('tiny-random', device='cpu', prompts=prompts, positions=positions)
    engine = start(model, note__max_new_tokens=2, step__chunk_tokens=64,
                   answer__reason_choices=False)
    watch(engine, clip(0, 4))
    choices = ('red', 'redder', 'green', 'a colour that is none of these')
    expected = [tuple(model.encode_user(choice)) for choice in choices]
    steps = record(model, monkeypatch)
    answer = ask(engine, choices).result(WAIT_S)
    assert engine.drain(WAIT_S)
    prefix = model.encode(model.style.choice_prefix)
    closer = model.encode(model.style.answer_closer)
    assert sum(len(ids) for step in steps for ids in step) == (
        answer.prompt_tokens + len(prefix) + sum(map(len, expected)) + len(closer))
    assert expected in steps                                                # side by side, at once
    assert sum(answer.choice_probabilities) == pytest.approx(1)
    assert answer.text == choices[max(range(4), key=answer.choice_probabilities.__getitem__)]
    assert answer.reused_tokens == engine.stats().memory_tokens + len(
        model.encode(model.style.header))
    assert sum(e.score for e in answer.evidence) > 0


def test_probabilities_are_those_of_whole_texts(start, tiny, monkeypatch):
    """Softmax over each choice's log-probability, its end mark included, from the logits."""
    engine = start(tiny, note__enabled=False)
    watch(engine, clip(0, 2))
    choices = ('red', 'redder', 'no')
    logits, step = [], tiny.step

    def recorded(spans):
        logits.append(step(spans))
        return logits[-1]

    monkeypatch.setattr(tiny, 'step', recorded)
    answer = ask(engine, choices).result(WAIT_S)
    question, branches = logits[0][-1][-1], logits[1]
    end = tiny.encode('<|im_end|>')
    totals = []
    for choice, rows in zip(choices, branches, strict=True):
        ids = tiny.encode_user(choice) + end
        lines = [question, *rows]
        totals.append(math.fsum(float(line.double().log_softmax(-1)[token])
                                for token, line in zip(ids, lines, strict=True)))
    top = max(totals)
    weights = [math.exp(total - top) for total in totals]
    assert answer.choice_probabilities == pytest.approx(
        [weight / sum(weights) for weight in weights], rel=1e-4)


def test_more_choices_than_fit_into_a_step(start, monkeypatch):
    model = ScriptedModel(answer='number 37')
    engine = start(model, step__chunk_tokens=20, note__enabled=False)
    watch(engine, clip(0, 2))
    steps = record(model, monkeypatch)
    choices = (*(f'number {n}' for n in range(50)), 'a choice that is longer than a whole step')
    answer = ask(engine, choices).result(WAIT_S)
    assert answer.text == 'number 37'
    assert sum(answer.choice_probabilities) == pytest.approx(1)
    # The closing mark is computed when the answer has been delivered.
    closer = tuple(model.encode(model.style.answer_closer))
    until(lambda: closer in steps[-1], 'the round was closed')
    assert max(sum(map(len, step)) for step in steps) == 20
    # Everything is computed once, whole where it fits: two choices and a piece of a third a step.
    ids = [model.encode_user(choice) for choice in choices]
    assert sum(len(span) for step in steps for span in step) == (
        answer.prompt_tokens + sum(map(len, ids)) + len(closer))
    assert sum(tuple(choice) in step for choice in ids for step in steps) > 30


@pytest.mark.parametrize('model', ['tiny', 'tiny_tww'])
def test_a_round_with_choices_is_remembered_with_the_chosen_one_only(start, request, model):
    model = request.getfixturevalue(model)
    engine = start(model, note__max_new_tokens=2, answer__reason_choices=False)
    watch(engine, clip(0, 2))
    choices = ('red', 'the colour of the sea')
    first = ask(engine, choices).result(WAIT_S)
    second = ask(engine, choices).result(WAIT_S)
    style = model.style
    assert second.reused_tokens - first.reused_tokens == first.prompt_tokens + sum(
        map(len, (model.encode(style.choice_prefix), model.encode_user(first.text),
                  model.encode(style.answer_closer))))
    written = engine.ask(Question('why?', max_new_tokens=4)).result(WAIT_S)
    assert written.reused_tokens > second.reused_tokens


def test_reasoning_comes_before_choices_and_all_of_them_see_it(start, tiny_tww, monkeypatch):
    """The model says its reasoning and the mark; probabilities are those behind it."""
    engine = start(tiny_tww, note__enabled=False)
    watch(engine, clip(0, 2))
    choices = ('red', 'redder', 'no')
    said = 'Reasoning: it was put there\nAnswer:'
    to_say = tiny_tww.encode(said)
    logits, ids, step = [], [], tiny_tww.step

    def told(spans):
        made = step(spans)
        ids.append([span.run.ids for span in spans])
        logits.append(list(made))
        if to_say and made[-1] is not None:
            made[-1] = torch.zeros_like(made[-1])
            made[-1][:, to_say.pop(0)] = 1.0
        return made

    monkeypatch.setattr(tiny_tww, 'step', told)
    pieces = list(engine.ask_stream(Question('which?', choices=choices), WAIT_S))
    answer = pieces[-1].answer
    assert answer.reasoning == 'it was put there' and answer.text in choices
    assert ''.join(piece.text for piece in pieces) == f'{said} {answer.text}'
    assert answer.completion_tokens == len(tiny_tww.encode(said)) + len(f' {answer.text}')
    # One step a token of the reasoning, all choices in the next one, and the closed round.
    scored = next(n for n, step_ids in enumerate(ids) if len(step_ids) == len(choices))
    assert [step_ids[-1] for step_ids in ids[scored - len(said):scored]] == [
        (token,) for token in tiny_tww.encode(said)]
    end = tiny_tww.encode(tiny_tww.style.answer_closer)
    totals = []
    for choice, rows in zip(choices, logits[scored], strict=True):
        lines = [logits[scored - 1][-1][-1], *rows]
        totals.append(math.fsum(
            float(line.double().log_softmax(-1)[token])
            for token, line in zip(tiny_tww.encode_user(f' {choice}') + end, lines, strict=True)))
    top = max(totals)
    weights = [math.exp(total - top) for total in totals]
    assert answer.choice_probabilities == pytest.approx(
        [weight / sum(weights) for weight in weights], rel=1e-4)
    # The next round of the session sees the reasoning.
    assert engine.drain(WAIT_S)
    after = engine.ask(Question('why?', max_new_tokens=2)).result(WAIT_S)
    assert after.reused_tokens - answer.reused_tokens == answer.prompt_tokens + len(
        tiny_tww.encode(tiny_tww.style.answer_prefix)) + answer.completion_tokens + len(end)


def test_reasoning_that_does_not_end_is_ended(start, tiny_tww, monkeypatch):
    engine = start(tiny_tww, note__enabled=False)
    watch(engine, clip(0, 2))
    monkeypatch.setattr(tiny_tww, 'answer_ends', frozenset())
    steps = record(tiny_tww, monkeypatch)
    answer = ask(engine, ('red', 'blue'), max_new_tokens=5).result(WAIT_S)
    forced = tuple(tiny_tww.encode('\nAnswer:'))
    place = next(n for n, step in enumerate(steps) if forced in map(tuple, step))
    assert [len(step[-1]) for step in steps[place - 5:place]] == [1] * 5
    assert sorted(map(tuple, steps[place + 1])) == sorted(
        tuple(tiny_tww.encode_user(choice)) for choice in (' red', ' blue'))
    assert answer.finish_reason == 'choice'
    chosen = tiny_tww.encode_user(f' {answer.text}')
    assert answer.completion_tokens == 5 + len(forced) + len(chosen)


def test_choices_and_free_answers_share_steps(start, gate):
    engine = start(ScriptedModel(answer=lambda question: 'blue', before_step=gate))
    watch(engine, clip(0, 2))
    gate.close()
    pending = [ask(engine, ('red', 'blue'), session='a'),
               engine.ask(Question('what?', session='b')),
               ask(engine, ('blue', 'green'), session='c')]
    for one in clip(2, 6):
        engine.push(one)
    gate.open()
    assert [question.result(WAIT_S).text for question in pending] == ['blue'] * 3


def test_cancelled_between_question_and_choices(start, gate):
    engine = start(ScriptedModel(answer='blue', before_step=gate))
    watch(engine, clip(0, 2))
    gate.close()
    pending = ask(engine, ('red', 'blue'))
    gate.let(1)
    gate.wait()
    following = ask(engine, ('red', 'blue'))
    pending.cancel()
    gate.open()
    answer = following.result(WAIT_S)
    assert answer.text == 'blue'
    assert answer.reused_tokens == ask(engine, ('red', 'blue'), session='b').result(
        WAIT_S).reused_tokens
