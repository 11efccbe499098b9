"""Watching goes on while an answer is written, and the other way round."""

import itertools

import numpy as np
import pytest
import torch
from engine.harness import WAIT_S, S, clip, frame, until, watch

from tww_ros import Question
from tww_ros.model.scripted import ScriptedModel


def test_frames_enter_memory_while_an_answer_is_written(start, gate):
    engine = start(ScriptedModel(answer='word ' * 400, before_step=gate),
                   answer__max_new_tokens=2_000)
    watch(engine, clip(0, 2))
    gate.close()
    pending = engine.ask(Question('tell me all', max_new_tokens=2_000))
    gate.let(3)
    gate.wait()
    assert pending.text() != ''
    watched = []
    for number, one in enumerate(clip(2, 6), start=5):
        engine.push(one)
        if number % 2 == 0:                                                 # a patch is complete
            while engine.stats().frames_watched < number and not pending.done():
                gate.let()
            gate.wait()
            watched.append(engine.stats().newest_ns)
    assert not pending.done()
    assert watched == [one.stamp_ns for one in clip(2, 6)][1::2]
    assert engine.stats().answers_active == 1
    written = pending.text()
    gate.let(2)
    gate.wait()
    assert len(pending.text()) == len(written) + 2                          # one token a step
    gate.open()
    answer = pending.result(WAIT_S)
    assert answer.as_of_ns == 1.5 * S
    assert answer.text == ('word ' * 400).strip()


def test_notes_are_written_while_an_answer_is_written(start, gate):
    engine = start(ScriptedModel(answer='word ' * 400, before_step=gate),
                   answer__max_new_tokens=2_000)
    watch(engine, clip(0, 2))
    pending_notes = engine.stats().notes_written
    gate.close()
    pending = engine.ask(Question('tell me all', max_new_tokens=2_000))
    for one in clip(2, 6):
        engine.push(one)
    while engine.stats().notes_written == pending_notes and not pending.done():
        gate.let()
    assert not pending.done()
    assert [note.start_ns for note in engine.memory.notes()] == [0, 2 * S]
    gate.open()
    assert pending.result(WAIT_S).as_of_ns == 1.5 * S


def test_a_real_model_reads_while_it_answers(start, gate, tiny, monkeypatch):
    step, sizes = tiny.step, []

    def gated(spans):
        gate(spans)
        sizes.append([len(span.run) for span in spans])
        return step(spans)

    monkeypatch.setattr(tiny, 'step', gated)
    engine = start(tiny, note__enabled=False, answer__max_new_tokens=200)
    watch(engine, clip(0, 2))
    gate.close()
    pending = engine.ask(Question('what?', max_new_tokens=200))
    gate.let(2)
    for one in clip(2, 4):
        engine.push(one)
    sizes.clear()
    while engine.stats().frames_watched < 8 and len(sizes) < 150:
        gate.let()
    assert engine.stats().frames_watched == 8
    assert not pending.done()
    assert sum(len(step) == 2 for step in sizes) == 2                       # two patches, packed
    assert all(step[0] == 1 for step in sizes)                              # one token every step
    pending.cancel()


def test_long_patches_are_read_in_chunks_beside_the_answer(start, gate):
    """However large an image is, a step that carries an answer's token stays short."""
    sizes = []

    def listen(spans):
        sizes.append([len(span.run) for span in spans])
        gate(spans)

    engine = start(ScriptedModel(answer='word ' * 400, before_step=listen),
                   step__chunk_tokens=8, note__enabled=False, answer__max_new_tokens=2_000)
    watch(engine, clip(0, 1))
    gate.close()
    pending = engine.ask(Question('what?', max_new_tokens=2_000))
    gate.let(6)
    for one in clip(1, 2, size=(320, 320)):
        engine.push(one)
    sizes.clear()
    while engine.stats().frames_watched < 4 and not pending.done():
        gate.let()
    assert not pending.done()
    assert max(max(step) for step in sizes) == 8
    assert sum(len(step) == 2 for step in sizes) >= 100 / 8                 # 10 × 10 tokens
    pending.cancel()


def test_watcher_waits_when_reading_falls_behind_and_questions_still_pass(start, gate):
    """Few patches wait between the threads; a question stands behind them, never in their way."""
    engine = start(step__read_ahead_patches=1)
    gate.close()
    for one in clip(0, 20):
        engine.push(one)
    gate.wait()
    pending = engine.ask(Question('what?'))
    until(lambda: engine.stats().frames_waiting == 40, 'the frames arrived')
    gate.open()
    assert pending.result(WAIT_S).as_of_ns == 19.5 * S
    assert engine.stats().frames_dropped == 0


@pytest.mark.parametrize('kind', ['scripted', 'tiny'])
def test_offline_the_pace_of_feeding_changes_nothing(start, tiny, kind):
    """Deterministic: all at once, or each segment noted before the next frame comes."""
    def run(pace):
        engine = start(ScriptedModel() if kind == 'scripted' else tiny, note__max_new_tokens=2,
                       step__deterministic=True, watch__segment_s=1.0)
        pending = []

        def written():
            return (engine.stats().notes_written == len(engine.memory)
                    and all(question.done() for question in pending))

        for number, one in enumerate(clip(0, 4)):
            assert engine.feed(one, WAIT_S)
            if number % 3 == 2:
                pending.append(engine.ask(Question('what?', max_new_tokens=3)))
            if pace == 'in steps':
                until(written, 'all was written')
        answers = [question.result(WAIT_S) for question in pending]
        assert engine.drain(WAIT_S)
        return ([(a.text, a.token_ids, a.as_of_ns, a.evidence, a.reused_tokens) for a in answers],
                [(n.segment_id, n.text, n.start_ns, n.end_ns) for n in engine.memory.notes()],
                engine.memory.segments())

    assert run('at once') == run('in steps')


def test_many_questions_and_frames_in_turn_keep_their_places(start):
    engine = start(note__enabled=False, answer__max_waiting=200)
    pending = []
    for number in range(100):
        engine.feed(frame(number / 2))
        pending.append(engine.ask(Question(f'{number}?', session=f'{number % 7}')))
    for number, question in enumerate(pending):
        assert question.result(WAIT_S).as_of_ns == number * S // 2
    assert engine.stats().answers_done == 100


def test_a_note_lets_an_answer_pass_until_its_first_token_but_not_for_ever(start, gate):
    steps = []

    def before(spans):
        gate(spans)
        steps.append([span.view.tokens and len(span.run) for span in spans])

    engine = start(ScriptedModel(note='a note of some length', before_step=before),
                   step__chunk_tokens=1)
    watch(engine, clip(0, 2))
    gate.close()
    for one in clip(2, 4):
        engine.push(one)
    # The question closes the segment, so that its note and the question begin together.
    pending = engine.ask(Question('q' * 60, max_new_tokens=1))
    while not engine.stats().answers_active:
        gate.let()
    gate.wait()
    begun, written = len(steps), engine.stats().notes_written
    while pending.first_token_s is None:
        gate.let()
        gate.wait()
    spans = [len(step) for step in steps[begun:]]
    gate.open()
    assert pending.result(WAIT_S).text
    assert engine.drain(WAIT_S)
    # One span a step: the question's; every ninth step the note has one too, and is written.
    together = [number for number, count in enumerate(spans) if count == 2]
    assert len(spans) > 60 and set(spans) == {1, 2}
    assert {later - earlier for earlier, later in itertools.pairwise(together)} == {9}
    assert engine.stats().notes_written == written + 1


def test_what_a_note_sees_is_laid_out_after_the_step_that_a_first_token_waits_for(start,
                                                                                 monkeypatch):
    happened = []

    def before(spans):
        happened.append('step')

    engine = start(ScriptedModel(before_step=before))
    watch(engine, clip(0, 2))
    resident = engine._bank.resident

    def look(scope, **options):
        # Only a note's scope ends with a segment.
        happened.append('question' if scope.until is None else 'note')
        return resident(scope, **options)

    monkeypatch.setattr(engine._bank, 'resident', look)
    for one in clip(2, 3):
        engine.push(one)
    # It closes the segment.
    assert engine.ask(Question('what?')).result(WAIT_S).text == 'yes'
    assert engine.drain(WAIT_S)
    first = happened.index('question')
    assert happened[first:first + 3] == ['question', 'step', 'note']


# Looking ahead

@pytest.fixture
def listening(monkeypatch):
    """A model, the pixels that it encodes, words and number of tokens of the patches it reads."""
    encoded, read = [], []

    def before_step(spans):
        read.extend((model.decode(span.run.ids), len(span.run)) for span in spans
                    if span.run.visual is not None and span.run.visual.any())

    model = ScriptedModel(before_step=before_step)
    encode = model.encode_patch

    def listen(pixels):
        encoded.append(pixels.values)
        return encode(pixels)

    monkeypatch.setattr(model, 'encode_patch', listen)
    return model, encoded, read


@pytest.mark.parametrize('ahead', [True, False])
def test_an_odd_frame_is_in_memory_before_a_question_needs_it(start, listening, ahead):
    model, encoded, read = listening
    engine = start(model, watch__look_ahead=ahead, watch__idle_close_s=100.0)
    for one in clip(0, 1.5):                                # 0.0 0.5 | 1.0
        engine.push(one)
    until(lambda: len(read) == 1 + ahead and engine.stats().frames_watched == 2,
          'what can be read was')
    assert engine.ask(Question('what?')).result(WAIT_S).as_of_ns == S
    assert engine.drain(WAIT_S)
    assert len(encoded) == len(read) == 2 and engine.stats().frames_watched == 3
    assert '<1.0 seconds>' in read[1][0]


def test_a_frame_that_was_read_ahead_still_becomes_half_of_a_patch(start, listening):
    model, encoded, read = listening
    engine = start(model, watch__look_ahead=True, watch__idle_close_s=100.0)
    first, second = clip(0, 1)
    engine.push(first)
    until(lambda: len(read) == 1, 'it was read ahead')
    assert engine.stats().frames_watched == engine.stats().segments == len(engine.memory) == 0
    engine.push(second)
    assert engine.drain(WAIT_S)
    assert len(encoded) == 2 and not np.array_equal(encoded[0], encoded[1])
    assert '<0.0 seconds>' in read[0][0] and '<0.2 seconds>' in read[1][0]
    assert engine.stats().frames_watched == 2
    record, = engine._bank.records()
    assert record.block.length == record.tokens == read[1][1]


def test_a_frame_that_cannot_be_encoded_ahead_is_reported_once(start, monkeypatch):
    model, tried = ScriptedModel(), []

    def fail(pixels):
        tried.append(pixels)
        raise RuntimeError('no such kernel')

    engine = start(model, watch__look_ahead=True, watch__idle_close_s=100.0)
    with monkeypatch.context() as patch:
        patch.setattr(model, 'encode_patch', fail)
        engine.push(clip(0, 1)[0])
        until(lambda: len(tried) == 1, 'it was tried ahead')
        assert engine.stats().last_error == ''
        assert engine.drain(WAIT_S)
        assert len(tried) == 2 and 'no such kernel' in engine.stats().last_error
    watch(engine, clip(1, 2))
    assert engine.stats().frames_watched == 2


def test_what_was_read_ahead_changes_nothing_in_memory(start, tiny):
    """Keys, values and mean keys of a real model, against an engine that never looks ahead."""
    # 0.0 0.5 | 1.0 1.5 ‖ 2.0 ← question ‖ 2.5 3.0 | 3.5 4.0 ‖ 4.5 5.0
    step, read, kept, means = tiny.step, [], [], []
    for ahead in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, 'step', lambda spans: (read.append(len(spans)), step(spans))[1])
            engine = start(tiny, watch__look_ahead=ahead, watch__idle_close_s=100.0,
                           note__enabled=False)
            until(lambda: len(read) == 1, 'the header was read')
            for number, one in enumerate(clip(0, 5.5, size=(64, 64))):
                read.clear()
                engine.push(one)
                if ahead or number in (1, 3, 6, 8, 10):
                    until(lambda: len(read) == 1, 'it was read')
                if number == 4:
                    engine.ask(Question('what?', max_new_tokens=1)).result(WAIT_S)
            assert engine.drain(WAIT_S)
            kept.append(engine._bank.records())
            means.append(engine._bank._keys.rows().means)
            assert engine.close(WAIT_S)
            read.clear()
    assert [record.tokens for record in kept[0]] == [record.tokens for record in kept[1]]
    for one, other in zip(*kept, strict=True):
        assert (one.block.start, one.block.end) == (other.block.start, other.block.end)
        for name, tensor in one.block.state().items():
            assert torch.allclose(tensor, other.block.state()[name], atol=1e-5)
    assert torch.allclose(*means, atol=2e-3)
