"""Segments as memory shows them, and which of them a question sees."""

import itertools

import pytest
from engine.harness import WAIT_S, S, clip, frame, until, watch

from tww_ros import Question
from tww_ros.errors import NothingSeenError, QuestionError
from tww_ros.model.scripted import ScriptedModel


def told(engine):
    """Segments as (camera, start s, end s, frames, closed by), in the order they were closed."""
    return [(info.camera, info.start_ns / S, info.end_ns / S, info.frames, info.closed_by)
            for info in engine.memory.segments()]


def seen(answer):
    """(camera, start s) of the evidence, in time order."""
    return sorted((e.camera, e.start_ns / S) for e in answer.evidence)


def ask(engine, text='what?', **options):
    return engine.ask(Question(text, **options)).result(WAIT_S)


def test_closed_by_time_question_resolution_epoch_and_drain(start):
    engine = start()
    for one in clip(10, 13):
        engine.feed(one)
    ask(engine)
    for one in [frame(13.0), *clip(13.5, 14.5, size=(32, 64)), *clip(2, 2.5)]:
        engine.feed(one)
    assert engine.drain(WAIT_S)
    assert told(engine) == [
        ('front', 10.0, 11.5, 4, 'time'), ('front', 12.0, 12.5, 2, 'question'),
        ('front', 13.0, 13.0, 1, 'resolution'), ('front', 13.5, 14.0, 2, 'epoch'),
        ('front', 2.0, 2.0, 1, 'flush')]
    infos = engine.memory.segments()
    assert [info.id for info in infos] == [info.order for info in infos] == [0, 1, 2, 3, 4]
    assert [info.epoch for info in infos] == [0, 0, 0, 0, 1]
    assert all(info.tokens > 0 and info.kv_bytes >= 16 * info.tokens for info in infos)
    assert engine.stats().epochs == 2


def test_segments_of_two_cameras_are_ordered_by_their_opening(start):
    engine = start()
    for one in sorted(clip(0, 2) + clip(0.25, 4.25, 'rear'), key=lambda f: f.stamp_ns):
        engine.feed(one)
    assert engine.drain(WAIT_S)
    infos = sorted(engine.memory.segments(), key=lambda info: info.order)
    assert [(info.camera, info.start_ns / S) for info in infos] == [
        ('front', 0.0), ('rear', 0.25), ('rear', 2.25)]


def test_silent_camera_closes_its_segment_while_another_goes_on(start):
    """A camera that went dark must not keep its last seconds out of memory for good."""
    engine = start(watch__idle_close_s=0.1)
    for one in clip(0, 1):
        engine.feed(one)
    rear = itertools.count()

    def closed():
        engine.feed(frame(next(rear) / 2, 'rear'))
        return ('front', 0.0, 0.5, 2, 'idle') in told(engine)

    until(closed, 'the silent camera\'s segment was closed')


def test_nothing_is_closed_for_silence_in_deterministic_mode(start):
    engine = start(watch__idle_close_s=0.1, step__deterministic=True)
    live = start(watch__idle_close_s=0.1)
    for one in clip(0, 1):
        engine.feed(one)
        live.feed(one)
    until(lambda: len(live.memory) == 1, 'the live engine closed its segment')
    assert told(live) == [('front', 0.0, 0.5, 2, 'idle')]
    assert told(engine) == []


def test_question_sees_all_that_was_pushed_before_it_and_its_odd_last_frame(start):
    engine = start()
    for number, one in enumerate(clip(0, 4.5)):
        engine.push(one)
        assert ask(engine, f'{number}?').as_of_ns == one.stamp_ns


def test_video_that_comes_after_a_question_is_not_in_its_view(start, gate):
    engine = start()
    watch(engine, clip(0, 2))
    gate.close()
    pending = engine.ask(Question('what?'))
    later = engine.ask(Question('and now?', session='other'))
    for one in clip(2, 6):
        engine.push(one)
    much_later = engine.ask(Question('and then?', session='third'))
    gate.open()
    for question, as_of_s in ((pending, 1.5), (later, 1.5), (much_later, 5.5)):
        answer = question.result(WAIT_S)
        assert answer.as_of_ns == as_of_s * S
        assert max(e.end_ns for e in answer.evidence) == as_of_s * S


def test_question_about_one_camera(start):
    engine = start()
    for one in sorted(clip(0, 3) + clip(0.25, 3.25, 'rear'), key=lambda f: f.stamp_ns):
        engine.feed(one)
    answer = ask(engine, cameras=('rear',))
    assert answer.as_of_ns == 2.75 * S
    assert {camera for camera, _ in seen(answer)} == {'rear'}
    closed = {(camera, closed_by) for camera, *_, closed_by in told(engine)}
    assert ('rear', 'question') in closed
    assert ('front', 'question') not in closed                              # front reads on
    both = ask(engine, cameras=('front', 'rear'))
    assert {camera for camera, _ in seen(both)} == {'front', 'rear'}


@pytest.mark.parametrize(('window_s', 'starts_s'), [
    ((0, 100), [0, 2, 4, 6]), ((2, 3.5), [2]), ((3.5, 4), [2, 4]), ((1.6, 1.9), None),
    ((7.5, 99), [6]), ((8, 99), None), ((3, 3), [2])])
def test_question_about_a_window_sees_the_segments_that_touch_it(start, window_s, starts_s):
    engine = start()
    watch(engine, clip(0, 8))
    window = tuple(round(edge * S) for edge in window_s)
    if starts_s is None:
        with pytest.raises(NothingSeenError, match='window'):
            ask(engine, window=window)
    else:
        answer = ask(engine, window=window)
        assert [start_s for _, start_s in seen(answer)] == starts_s
        assert answer.as_of_ns == (starts_s[-1] + 1.5) * S


def test_a_jump_back_starts_an_epoch_that_sees_nothing_of_the_old_one(start):
    engine = start()
    watch(engine, clip(100, 104))
    before = ask(engine)
    for one in clip(7, 9):
        engine.feed(one)
    after = ask(engine)
    assert before.as_of_ns == 103.5 * S
    assert after.as_of_ns == 8.5 * S
    assert [e.start_ns / S for e in after.evidence] == [7.0]
    assert engine.stats().newest_ns == 8.5 * S                              # not the old epoch's
    with pytest.raises(NothingSeenError):
        ask(engine, window=(100 * S, 104 * S))


def test_old_epoch_is_gone_for_a_camera_that_has_sent_nothing_since(start):
    engine = start()
    watch(engine, sorted(clip(100, 102) + clip(100, 102, 'rear'), key=lambda f: f.stamp_ns))
    engine.feed(frame(7, 'rear'))
    with pytest.raises(NothingSeenError, match='front'):
        ask(engine, cameras=('front',))
    assert ask(engine, cameras=('rear',)).as_of_ns == 7 * S


def test_old_epoch_is_gone_when_the_new_one_could_not_be_encoded(start):
    class Blind(ScriptedModel):
        def encode_patch(self, pixels):
            if pixels.grid_h > 2:
                raise RuntimeError('cannot see')
            return super().encode_patch(pixels)

    engine = start(Blind())
    watch(engine, clip(100, 102))
    watch(engine, clip(7, 8, size=(64, 64)))
    with pytest.raises(NothingSeenError):
        ask(engine)


def test_late_frames_are_rejected_and_change_nothing(start):
    engine = start()
    frames = clip(10, 12)
    watch(engine, [*frames[:3], frame(10.9), frame(11.0), frames[3]])
    assert engine.stats().frames_rejected == 2
    assert told(engine) == [('front', 10.0, 11.5, 4, 'flush')]
    assert engine.stats().epochs == 1


def test_the_model_reads_seconds_since_the_epoch_of_the_frame(start):
    """The odd last frame of an epoch reaches the model when the clock has jumped back already."""
    read = []

    def listen(spans):
        read.extend(engine.model.decode(span.run.ids) for span in spans)

    model = ScriptedModel(before_step=lambda spans: listen(spans) if engine else None)
    engine = None
    engine = start(model)
    watch(engine, [*clip(100, 101.5), *clip(50, 51)])
    stamps = [text.split('>')[0] for text in read if 'seconds>' in text]
    assert stamps == ['<0.2 seconds', '<1.0 seconds', '<0.2 seconds']


def test_cameras_are_named_before_their_segments_when_wanted(start):
    read = []
    model = ScriptedModel(before_step=lambda spans: read.extend(span.run.ids for span in spans))
    engine = start(model, watch__label_cameras=True, note__enabled=False)
    watch(engine, clip(0, 4))
    texts = [model.decode(ids) for ids in read[1:]]                         # without the header
    assert [text.startswith('Camera front: <') for text in texts] == [True, False, True, False]


def test_segment_larger_than_an_answer_may_see_says_what_to_raise(start):
    engine = start(memory__resident_tokens=16, memory__resident_note_tokens=0)
    watch(engine, clip(0, 2))
    with pytest.raises(QuestionError, match=r'memory\.resident_tokens'):
        ask(engine)


def test_evidence_of_a_real_model(start, tiny):
    """Scores are shares of attention: of visible segments only, 0 to 1, together at most 1."""
    engine = start(tiny, note__max_new_tokens=3)
    watch(engine, sorted(clip(0, 4) + clip(0.25, 4.25, 'rear'), key=lambda f: f.stamp_ns))
    pending = [engine.ask(Question('what?', session='a', max_new_tokens=4)),
               engine.ask(Question('what?', session='b', cameras=('rear',), max_new_tokens=4,
                                   window=(2 * S, 3 * S))),
               engine.ask(Question('what?', session='c', choices=('red', 'blue')))]
    for one in clip(4.5, 8):
        engine.push(one)
    all_of_it, rear, choice = [question.result(WAIT_S) for question in pending]
    for answer in (all_of_it, rear, choice):
        scores = [e.score for e in answer.evidence]
        assert all(0 < score < 1 for score in scores)
        assert sum(scores) <= 1
        assert scores == sorted(scores, reverse=True)
        assert all(e.end_ns <= answer.as_of_ns for e in answer.evidence)
    assert seen(all_of_it) == seen(choice) == [('front', 0), ('front', 2), ('rear', 0.25),
                                               ('rear', 2.25)]
    assert seen(rear) == [('rear', 2.25)]
    assert rear.as_of_ns == 3.75 * S
    notes = {note.segment_id: note.text for note in engine.memory.notes()}
    assert all(e.note == notes[e.segment_id] for e in all_of_it.evidence)
