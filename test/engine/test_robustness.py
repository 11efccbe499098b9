"""Something fails: it alone, with a word about it, and everything else goes on."""

import pytest
from engine.harness import WAIT_S, Gate, S, balance, clip, until, watch

from tww_ros import Engine, Question
from tww_ros.errors import EngineClosedError, QuestionError
from tww_ros.model.scripted import ScriptedModel


def ask(engine, text='what?', session='a', **options):
    return engine.ask(Question(text, session, **options))


def texts(model, spans):
    return [model.decode(span.run.ids) for span in spans]


def failing(poison, gate=lambda spans: None, still=lambda: True):
    """A model whose steps fail while `still()` when one of their spans holds the text `poison`."""
    def before_step(spans):
        gate(spans)
        if any(poison in text for text in texts(model, spans)) and still():
            raise RuntimeError(f'cannot compute {poison}')

    model = ScriptedModel(before_step=before_step)
    return model


def told(engine):
    return [(info.start_ns / S, info.end_ns / S, info.frames) for info in engine.memory.segments()]


# Answers

@pytest.mark.parametrize('timeout_s', [float('inf'), 1e12])
def test_a_limit_that_no_lock_can_wait_for(start, monkeypatch, timeout_s):
    engine = start(ScriptedModel())
    watch(engine, clip(0, 2))
    with monkeypatch.context() as patch:
        # The question stays in front of the reasoner, which sleeps until its time is up.
        patch.setattr(engine._watcher, 'mark', lambda mark: None)
        held = ask(engine, timeout_s=timeout_s)
    assert ask(engine, session='b').result(WAIT_S).text == 'yes'
    assert held.cancel() and not engine.stats().last_error


def test_one_bad_span_in_a_packed_step_fails_its_owner_alone(start, gate):
    engine = start(failing('poison', gate))
    watch(engine, clip(0, 2))
    gate.close()
    for one in clip(2, 6):
        engine.push(one)
    gate.wait()
    pending = [ask(engine, text, session=text)
               for text in ('good', 'the poison', 'fine', 'more poison')]
    for one in clip(6, 8):
        engine.push(one)
    gate.open()
    for question in pending[1::2]:
        with pytest.raises(QuestionError, match=r'cannot compute poison.*ask for less'):
            question.result(WAIT_S)
    assert [question.result(WAIT_S).text for question in pending[::2]] == ['yes', 'yes']
    assert engine.drain(WAIT_S)
    stats = engine.stats()
    assert (stats.answers_done, stats.answers_failed) == (2, 2)
    assert (stats.frames_watched, stats.frames_rejected) == (16, 0)
    assert stats.notes_written == stats.segments == 4
    assert 'poison' in stats.last_error
    assert ask(engine).result(WAIT_S).text == 'yes'


def test_an_error_while_the_answer_is_written_reaches_the_asker(start):
    def before_step(spans):
        if boom and any(span.logits == 'last' and len(span.run) == 1 for span in spans):
            raise MemoryError('out of memory')

    boom = []
    engine = start(ScriptedModel(before_step=before_step), note__enabled=False)
    watch(engine, clip(0, 1))
    boom.append(True)
    pending = ask(engine)
    written = []
    with pytest.raises(QuestionError, match='out of memory'):
        written.extend(pending.pieces(WAIT_S))
    assert pending.text() == 'y'
    boom.clear()
    assert ask(engine).result(WAIT_S).text == 'yes'


# Watching

@pytest.mark.parametrize(('poison', 'left'), [
    ('<0.2 seconds>', (1.0, 1.5, 2)), ('<1.2 seconds>', (0.0, 0.5, 2))])
def test_patch_that_cannot_be_read_leaves_nothing_behind(start, poison, left):
    """Also when its first chunks were read: half a patch would stay in memory for good."""
    whole = start(step__chunk_tokens=4, note__enabled=False)
    watch(whole, clip(0, 1))
    tokens = whole.memory.segments()[0].tokens

    def before_step(spans):
        bad[0] = bad[0] or any(poison[:4] in text for text in texts(model, spans))
        if bad[0] and any(span.run.visual is not None for span in spans):
            bad[0] = False
            raise RuntimeError('cannot be read')

    bad = [False]
    model = ScriptedModel(before_step=before_step)
    engine = start(model, step__chunk_tokens=4, note__enabled=False)
    watch(engine, clip(0, 2))
    info, = engine.memory.segments()
    assert told(engine) == [left]
    assert info.tokens == tokens
    assert info.kv_bytes == 16 * tokens
    stats = engine.stats()
    assert (stats.frames_watched, stats.frames_rejected) == (2, 2)
    assert balance(stats) == (4, 4)
    assert ask(engine).result(WAIT_S).as_of_ns == left[1] * S


def test_segment_of_which_nothing_can_be_read_is_forgotten(start):
    engine = start(failing('<0.2 seconds>'), note__enabled=False, watch__segment_s=1.0)
    watch(engine, clip(0, 3))
    assert told(engine) == [(1.0, 1.5, 2), (2.0, 2.5, 2)]
    assert engine.stats().segments == 2


def test_patch_that_cannot_be_encoded(start):
    class Blinking(ScriptedModel):
        patches = 0

        def encode_patch(self, pixels):
            self.patches += 1
            if self.patches in (1, 4):
                raise RuntimeError('blink')
            return super().encode_patch(pixels)

    engine = start(Blinking())
    watch(engine, clip(0, 4))
    assert told(engine) == [(1.0, 1.5, 2), (2.0, 2.5, 2)]
    assert 'camera \'front\'' in engine.stats().last_error
    assert engine.stats().frames_rejected == 4


def test_patch_that_finds_no_room_is_counted_and_the_engine_goes_on(start, monkeypatch):
    engine = start(note__enabled=False)
    model, new_block, calls = engine.model, engine.model.new_block, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError('no room for a segment')
        return new_block(*args, **kwargs)

    monkeypatch.setattr(model, 'new_block', sometimes)
    watch(engine, clip(0, 2))
    assert told(engine) == [(1.0, 1.5, 2)]
    assert balance(engine.stats()) == (4, 4)
    assert engine.stats().frames_rejected == 2
    assert ask(engine).result(WAIT_S).text == 'yes'


def test_text_that_cannot_be_tokenized_while_reading(start, monkeypatch):
    engine = start(note__enabled=False)
    encode, calls = engine.model.encode, []

    def sometimes(text):
        calls.append(text)
        if len(calls) == 2:
            raise RuntimeError('the tokenizer is busy')
        return encode(text)

    monkeypatch.setattr(engine.model, 'encode', sometimes)
    watch(engine, clip(0, 3))
    assert told(engine) == [(0.0, 0.5, 2), (2.0, 2.5, 2)]
    assert engine.stats().frames_rejected == 2
    assert ask(engine).result(WAIT_S).text == 'yes'


# Notes

def test_note_that_fails_is_counted_and_the_next_ones_are_written(start):
    engine = start(failing('In one short sentence',
                           still=lambda: engine.stats().notes_skipped == 0))
    watch(engine, clip(0, 6))
    stats = engine.stats()
    assert (stats.notes_written, stats.notes_skipped, stats.notes_waiting) == (2, 1, 0)
    assert [note.start_ns / S for note in engine.memory.notes()] == [2, 4]
    assert [info.note for info in engine.memory.segments()] == ['', 'nothing new', 'nothing new']


def test_note_that_cannot_begin_is_counted_and_the_next_ones_are_written(start, monkeypatch):
    engine = start()
    new_block, failed = engine.model.new_block, []

    def sometimes(start=0, capacity=0):
        if capacity > 40 and len(failed) < 2:                               # a note's own block
            failed.append(capacity)
            raise MemoryError('no room for a note')
        return new_block(start, capacity)

    monkeypatch.setattr(engine.model, 'new_block', sometimes)
    watch(engine, clip(0, 6))
    stats = engine.stats()
    assert (stats.notes_written, stats.notes_skipped) == (1, 2)
    assert 'no room for a note' in stats.last_error
    assert ask(engine).result(WAIT_S).text == 'yes'


def test_listeners_that_fail_stop_nothing(start, caplog):
    notes, segments = [], []

    def on_note(note):
        notes.append(note)
        raise ZeroDivisionError('note listener')

    def on_segment(info):
        segments.append(info)
        raise ZeroDivisionError('segment listener')

    engine = start(on_note=on_note, on_segment=on_segment)
    watch(engine, clip(0, 6))
    assert [info.id for info in segments] == [note.segment_id for note in notes] == [0, 1, 2]
    assert notes == engine.memory.notes()
    assert [(info.start_ns, info.end_ns, info.closed_by) for info in segments] == [
        (info.start_ns, info.end_ns, info.closed_by) for info in engine.memory.segments()]
    assert 'a listener of the engine failed' in caplog.text
    assert ask(engine).result(WAIT_S).text == 'yes'


@pytest.mark.parametrize('deterministic', [False, True])
def test_notes_that_fall_behind_are_skipped_live_and_never_offline(start, deterministic):
    """Live, the oldest that wait get none; the newest segment is always noted."""
    class Counting(ScriptedModel):
        patches = 0

        def encode_patch(self, pixels):
            self.patches += 1
            return super().encode_patch(pixels)

    gate = Gate(lambda spans: any('In one short' in text for text in texts(model, spans)))
    model = Counting(before_step=gate)
    engine = start(model, note__backlog=2, step__deterministic=deterministic)
    gate.close()
    for one in clip(0, 16):
        engine.push(one)
    gate.wait()                                                             # the first note's step
    until(lambda: model.patches == 16, 'everything was there to be read')
    gate.open()
    assert engine.drain(WAIT_S)
    stats = engine.stats()
    assert stats.notes_written + stats.notes_skipped == stats.segments == 8
    assert (stats.notes_skipped == 0) == deterministic
    noted = [note.segment_id for note in engine.memory.notes()]
    assert (noted[0], noted[-1]) == (0, 7)                                  # under way, and newest


def test_without_notes(start):
    heard = []
    engine = start(note__enabled=False, on_note=heard.append)
    watch(engine, clip(0, 6))
    stats = engine.stats()
    assert (stats.segments, stats.notes_written, stats.notes_skipped) == (3, 0, 0)
    assert engine.memory.notes() == heard == []
    answer = ask(engine).result(WAIT_S)
    assert [e.note for e in answer.evidence] == ['', '', '']


# The whole model

def test_a_model_that_cannot_even_read_its_header(start):
    def before_step(spans):
        raise RuntimeError('no kernel for this device')

    with Engine(ScriptedModel(before_step=before_step)) as engine:
        until(lambda: not engine._reasoner.alive, 'the reasoner gave up')
        with pytest.raises(EngineClosedError, match='no kernel for this device'):
            ask(engine)
        assert not any(engine.push(one) for one in clip(0, 2))
        assert not engine.feed(clip(0, 1)[0], WAIT_S)
        with pytest.raises(EngineClosedError):
            engine.drain(WAIT_S)
    assert engine.close()


def test_a_model_that_fails_for_good(start):
    """Every step fails: every question is told so, nothing hangs, and close still ends it."""
    broken = []

    def before_step(spans):
        if broken:
            raise RuntimeError('device lost')

    engine = start(ScriptedModel(before_step=before_step))
    watch(engine, clip(0, 2))
    broken.append(True)
    pending = [ask(engine, session=name) for name in 'aabbc']
    for one in clip(2, 6):
        engine.push(one)
    for question in pending:
        with pytest.raises(QuestionError, match='device lost'):
            question.result(WAIT_S)
    assert engine.drain(WAIT_S)
    assert engine.stats().frames_rejected == 8
    broken.clear()
    assert ask(engine).result(WAIT_S).text == 'yes'


def test_a_question_goes_on_when_the_frames_before_it_cannot_be_put_away(start, monkeypatch):
    engine = start(ScriptedModel())
    watch(engine, clip(0, 2))

    def fail(event):
        raise OSError('no room for a picture')

    with monkeypatch.context() as patch:
        patch.setattr(engine._watcher, '_picture', fail)
        for one in clip(2, 2.5):
            engine.push(one)
        assert ask(engine).result(WAIT_S).as_of_ns == 1.5 * S
        assert 'no room for a picture' in engine.stats().last_error
        for one in clip(2.5, 3):
            engine.push(one)
        assert engine.drain(WAIT_S)
