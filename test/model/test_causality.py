"""What must not matter, bit for bit: the future, other sessions, timing. And who shares a step."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from reference import stock
from reference.layout import START_NS, Ask, Segment, lay_out, run, tell
from reference.recorder import Recorder

from tww_ros import Engine, EngineConfig, Frame, Question, load_model
from tww_ros.config import AnswerConfig, NoteConfig, StepConfig, WatchConfig
from tww_ros.memory.view import Entry, View
from tww_ros.memory.view import lay_out as lay_out_view
from tww_ros.model.positions import patch_positions
from tww_ros.model.run import Span, TokenRun
from tww_ros.video.pixels import to_pixels

CONFIG = EngineConfig(watch=WatchConfig(segment_s=2.0, min_pixels=1_024),
                      note=NoteConfig(max_new_tokens=6),
                      # The naive layout chooses at once.
                      answer=AnswerConfig(reason_choices=False),
                      step=StepConfig(deterministic=True, chunk_tokens=64))
SCHEMES = [('continuous', 'stock'), ('decoupled', 'tww')]


@functools.cache
def model(positions, prompts):
    return load_model('tiny-random', positions=positions, prompts=prompts)


def segment(name, start_s, frames=3, seed=0):
    return Segment(name, stock.noise(frames, 64, 64, seed=round(start_s * 10) + 1_000 * seed),
                   [start_s + i / 2 for i in range(frames)])


def told(scheme, style, story):
    """Layout of a story told to a new engine, its answers, its notes, its segments."""
    with pytest.MonkeyPatch.context() as patch:
        notes = []
        recorder = Recorder(model(scheme, style), patch)
        with Engine(model(scheme, style), CONFIG, on_note=notes.append) as engine:
            answers = tell(engine, story)
            segments = engine.memory.segments()
    layout = lay_out(model(scheme, style).tokenizer, recorder, story, style,
                     note_limit=CONFIG.note.max_new_tokens)
    return layout, answers, {note.segment_id: note for note in notes}, segments


def same_bits(first, second, names):
    """Keys, values and ids of these units are equal in both layouts, bit for bit."""
    for name in names:
        a, b = first.blocks[name], second.blocks[name]
        assert a.ids == b.ids and (a.block.start, a.block.end) == (b.block.start, b.block.end)
        size = len(a.ids)
        assert torch.equal(a.block.keys[:, :, :size], b.block.keys[:, :, :size])
        assert torch.equal(a.block.values[:, :, :size], b.block.values[:, :, :size])
        assert a.logits.keys() == b.logits.keys()
        assert all(torch.equal(row, b.logits[i]) for i, row in a.logits.items())


def same_answer(first, second):
    assert first.token_ids == second.token_ids and first.text == second.text
    assert first.evidence == second.evidence and first.as_of_ns == second.as_of_ns
    assert first.choice_probabilities == second.choice_probabilities
    assert first.reused_tokens == second.reused_tokens


@pytest.mark.parametrize(('scheme', 'style'), SCHEMES)
def test_the_future_changes_nothing_before_it(scheme, style):
    """Every pixel after r1 is replaced; r0, r1, their notes and the answers asked by then stay."""
    def story(seed):
        return [segment('r0', 0.0), segment('r1', 2.0), Ask('a1', 'a', 'What is there?'),
                Ask('b1', 'b', 'Which?', choices=('left', 'right')),
                segment('r2', 4.0, seed=seed), Ask('a2', 'a', 'And now?'),
                segment('r3', 6.0, seed=seed)]

    first, answers, notes, _ = told(scheme, style, story(0))
    second, other_answers, other_notes, _ = told(scheme, style, story(1))
    early = ['header', 'r0', 'note r0', 'r1', 'note r1', 'Q a1', 'A a1', 'Q b1']
    same_bits(first, second, [*early, 'A b1 0', 'A b1 1'])
    for name in ('a1', 'b1'):
        same_answer(answers[name], other_answers[name])
    assert [notes[i].text for i in (0, 1)] == [other_notes[i].text for i in (0, 1)]
    for name in ('r2', 'note r2', 'Q a2'):
        with pytest.raises(AssertionError):
            same_bits(first, second, [name])


@pytest.mark.parametrize(('scheme', 'style'), SCHEMES)
def test_other_sessions_change_nothing(scheme, style):
    """Other questions, other texts, another count, before and behind: session a is the same."""
    segments = [segment('r0', 0.0), segment('r1', 2.0), segment('r2', 4.0, frames=2)]
    own = [Ask('a1', 'a', 'What is there?'), Ask('a2', 'a', 'Which?', choices=('left', 'right')),
           Ask('a3', 'a', 'And now?')]
    alone = [segments[0], own[0], segments[1], own[1], segments[2], own[2]]
    crowded = [segments[0], Ask('b1', 'b', 'Something else entirely, and longer?'), own[0],
               Ask('c1', 'c', 'Yes?', limit=1), segments[1], own[1],
               Ask('b2', 'b', 'Who?', choices=('you', 'me')), segments[2],
               Ask('b3', 'b', 'What?', limit=9), Ask('c2', 'c', 'No?'), own[2]]
    first, answers, notes, infos = told(scheme, style, alone)
    second, other_answers, other_notes, other_infos = told(scheme, style, crowded)
    same_bits(first, second, first.blocks)
    assert infos == other_infos
    assert {i: note.text for i, note in notes.items()} == {
        i: note.text for i, note in other_notes.items()}
    for name in ('a1', 'a2', 'a3'):
        same_answer(answers[name], other_answers[name])


@pytest.mark.parametrize(('scheme', 'style'), SCHEMES)
def test_what_a_user_writes_does_matter_to_that_user(scheme, style):
    """The comparison above is not blind: another earlier question of the session is seen."""
    def story(text):
        return [segment('r0', 0.0), Ask('a1', 'a', text), Ask('a2', 'a', 'And now?')]

    first, *_ = told(scheme, style, story('What?'))
    second, *_ = told(scheme, style, story('Whom?'))
    same_bits(first, second, ['r0', 'note r0'])
    with pytest.raises(AssertionError):
        same_bits(first, second, ['Q a2'])


def test_timing_changes_nothing():
    """Frames and questions at once, or with waits in between, in two engines: the same bytes."""
    loaded = model('continuous', 'stock')

    def watch(wait_s, patch):
        recorder = Recorder(loaded, patch)
        step = loaded.step
        patch.setattr(loaded, 'step', lambda spans: (time.sleep(wait_s / 10), step(spans))[1])
        pending = []
        with Engine(loaded, CONFIG) as engine:
            for index, image in enumerate(stock.noise(8, 64, 64)):
                engine.feed(Frame(START_NS + index * 500_000_000, 'camera', image))
                time.sleep(wait_s)
                if index in (2, 5):
                    pending += [engine.ask(Question('What is it?', session=name, max_new_tokens=8))
                                for name in ('a', 'b')]
            assert engine.drain(60)
            answers = [p.result(60) for p in pending]
            notes = [(note.text, note.tokens) for note in engine.memory.notes()]
        return [(r.ids, r.block.keys[:, :, :len(r.ids)]) for r in recorder.list()], answers, notes

    with pytest.MonkeyPatch.context() as patch:
        first, answers, notes = watch(0.0, patch)
    with pytest.MonkeyPatch.context() as patch:
        second, other_answers, other_notes = watch(0.05, patch)
    assert [ids for ids, _ in first] == [ids for ids, _ in second]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))
    assert notes == other_notes and len(notes) >= 3
    for one, other in zip(answers, other_answers, strict=True):
        same_answer(one, other)


@pytest.mark.parametrize(('scheme', 'style'), SCHEMES)
def test_a_new_epoch_begins_as_a_new_engine_does(scheme, style):
    """A bag that loops: behind the jump every bit is as if the old epoch had never been."""
    loaded = model(scheme, style)

    def recorded(*stories):
        with pytest.MonkeyPatch.context() as patch:
            recorder = Recorder(loaded, patch)
            with Engine(loaded, CONFIG) as engine:
                for frames, start_s in stories:
                    for index, image in enumerate(frames):
                        engine.feed(Frame(round((start_s + index / 2) * 1e9), 'camera', image))
                answer = engine.ask(Question('What is it?', max_new_tokens=6)).result(60)
                assert engine.drain(60)
                segments = engine.memory.segments()
        return recorder.list(), answer, segments

    old, new = stock.noise(3, 64, 64, seed=1), stock.noise(6, 64, 64, seed=2)
    both, answer, segments = recorded((old, 100.0), (new, 40.0))
    alone, same, _ = recorded((new, 7.0))
    assert [s.epoch for s in segments] == [0, 1, 1] and segments[0].closed_by == 'epoch'
    # The old epoch's odd last frame is still told by the old clock.
    assert loaded.decode(both[1].ids) == '<0.2 seconds><1.0 seconds>'
    assert answer.token_ids == same.token_ids and answer.reused_tokens == same.reused_tokens
    for one, other in zip([both[0], *both[3:]], alone, strict=True):
        assert one.ids == other.ids
        size = len(one.ids)
        assert torch.equal(one.block.keys[:, :, :size], other.block.keys[:, :, :size])
        assert torch.equal(one.block.values[:, :, :size], other.block.values[:, :, :size])


def test_a_span_does_not_depend_on_what_shares_its_step():
    """Reading, a note's token, two answers' tokens and a question: packed as alone, to 1e-5."""
    loaded = model('continuous', 'stock')
    rng = np.random.default_rng(0)

    def text(count):
        return rng.integers(0, 256, count).tolist()

    sink = loaded.new_block()
    memory = loaded.new_block(6)
    nothing = View((), 0, 0)
    loaded.step([Span(sink, nothing, TokenRun.text(text(6), 0))])
    loaded.step([Span(memory, lay_out_view([Entry(sink, 'source')], 'continuous'),
                      TokenRun.text(text(90), 6))])
    view = lay_out_view([Entry(sink, 'source'), Entry(memory, 'source')], 'continuous')
    vision = loaded.encode_patch(to_pixels(stock.noise(2, 64, 64), min_pixels=1_024,
                                           max_pixels=200_704))
    pads = vision.rows * vision.columns
    grid, end = patch_positions(vision.rows, vision.columns, view.next_source)
    patch = TokenRun((loaded.video_pad_id,) * pads, grid, end, np.ones(pads, bool), vision.tokens,
                     vision.deepstack)
    runs = [patch] + [TokenRun.text(text(count), view.next_source) for count in (1, 1, 1, 40)]

    def spans(chosen):
        return [Span(loaded.new_block(view.next_source), view, run, 'all') for run in chosen]

    alone = [spans([run]) for run in runs]
    separate = [loaded.step(part)[0] for part in alone]
    for chosen in ([0, 1], [4, 3, 2, 1, 0], [1, 2, 3], [0, 4]):
        packed = spans([runs[i] for i in chosen])
        logits = loaded.step(packed)
        for i, span, rows in zip(chosen, packed, logits, strict=True):
            assert (rows - separate[i]).abs().max() < 1e-5
            own = alone[i][0].block
            assert (span.block.keys - own.keys).abs().max() < 1e-5
            assert (span.block.values - own.values).abs().max() < 1e-5


def test_the_recorded_story_is_the_one_that_was_told():
    """`told` would notice a block too many: here nothing but the story's own units."""
    story = [segment('r0', 0.0), Ask('a1', 'a', 'What?')]
    with pytest.MonkeyPatch.context() as patch:
        recorder, answers, segments = run(model('continuous', 'stock'), CONFIG, story, patch)
    assert len(recorder.list()) == 5                                   # header, R, C, Q, A
    assert len(segments) == 1 and segments[0].frames == 3
    assert answers['a1'].as_of_ns == START_NS + 1_000_000_000
