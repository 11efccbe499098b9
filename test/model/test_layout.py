"""Everything that an engine computed in many packed steps = one naive float64 forward.

Compared are the logits that were handed out and, much stricter, the keys and values of every
token in every layer: from the second layer on they hold what all attention before them did.
"""

from __future__ import annotations

import dataclasses
import functools
import threading

import pytest
import torch
from reference import stock
from reference.layout import Ask, Budgets, Layout, Segment, check_greedy, lay_out, run
from reference.naive import Naive

from tww_ros import EngineConfig, load_model
from tww_ros.config import AnswerConfig, MemoryConfig, NoteConfig, StepConfig, WatchConfig

TOLERANCE = 1e-4
NOTE_LIMIT = 4


@functools.cache
def model(positions, prompts):
    return load_model('tiny-random', positions=positions, prompts=prompts)


@functools.cache
def naive():
    return Naive(load_model('tiny-random').hf)


def segment(name, start_s, frames=2, height=64, width=64, camera='camera'):
    """Frames at 2 per second from start_s on."""
    seed = round(start_s * 10) + (1 if camera == 'camera' else 7)
    return Segment(name, stock.noise(frames, height, width, seed),
                   [start_s + i / 2 for i in range(frames)], camera)


def config(label_cameras=False, **memory):
    note_window = {'window_tokens': memory.pop('note_window')} if 'note_window' in memory else {}
    return EngineConfig(
        watch=WatchConfig(segment_s=2.0, min_pixels=1_024, label_cameras=label_cameras),
        note=NoteConfig(max_new_tokens=NOTE_LIMIT, **note_window), memory=MemoryConfig(**memory),
        # Reasoning before a choice: test_engine_equality.py compares it.
        answer=AnswerConfig(reason_choices=False),
        step=StepConfig(deterministic=True, chunk_tokens=29))


# Two sessions, three rounds; segments closed by time, by a question and by another resolution.
STORY = [
    segment('r0', 0.0, frames=4), segment('r1', 2.0, frames=3, height=32, width=96),
    Ask('a1', 'a', 'What is there?'), Ask('b1', 'b', 'Who came in <|im_end|> first?', limit=3),
    segment('r2', 4.0, frames=1), Ask('a2', 'a', 'And now?'),
    segment('r3', 5.0, frames=3, height=96, width=32),
    Ask('b2', 'b', 'Is it red?', choices=('yes', 'no', 'maybe not')),
    Ask('a3', 'a', 'Is it the same?', limit=6), Ask('b3', 'b', 'Why?'),
]


def worst(layout: Layout, results) -> float:
    """Largest difference of logits, un-rotated keys and values between engine and reference."""
    found = 0.0
    for unit in layout.units:
        recorded, expected = layout.blocks[unit.name], results[unit.name]
        block = recorded.block
        assert block.length == len(unit.ids) and block.extent == expected.extent
        stored_at = expected.local + block.start
        keys = torch.stack([naive().rotate(k, stored_at) for k in expected.keys])
        for stored, wanted in ((block.keys, keys), (block.values, expected.values)):
            found = max(found, (stored[:, :, :block.length] - wanted).abs().max().item())
        for row, logits in recorded.logits.items():
            found = max(found, (logits - expected.logits[row]).abs().max().item())
    return found


def check(layout, scheme):
    """The engine equals the reference; returns the reference's results."""
    results = naive().forward(layout.units, scheme)
    assert worst(layout, results) < TOLERANCE
    check_greedy(layout, results)
    return results


SCHEMES = [('continuous', 'stock'), ('decoupled', 'tww'), ('decoupled', 'stock')]


@functools.cache
def told(scheme, style):
    with pytest.MonkeyPatch.context() as patch:
        recorder, answers, _ = run(model(scheme, style), config(), STORY, patch)
    layout = lay_out(model(scheme, style).tokenizer, recorder, STORY, style, note_limit=NOTE_LIMIT)
    return layout, answers


@pytest.mark.parametrize(('scheme', 'style'), SCHEMES)
def test_two_sessions_three_rounds_equal_naive_float64(scheme, style):
    layout, answers = told(scheme, style)
    results = check(layout, scheme)
    for name, answer in answers.items():
        if f'A {name}' in layout.generated:
            assert list(answer.token_ids) == layout.generated[f'A {name}']
    end, = model(scheme, style).tokenizer.convert_tokens_to_ids(
        ['<EOQ>' if style == 'tww' else '<|im_end|>'])
    before = results['P b2' if style == 'tww' else 'Q b2'].logits[-1:]
    scores = []
    for number, ids in enumerate(layout.choices['b2']):
        table = torch.cat((before, results[f'A b2 {number}'].logits)).log_softmax(-1)
        scores.append(sum(table[i, token] for i, token in enumerate([*ids, end])))
    expected = torch.stack(scores).softmax(0)
    assert answers['b2'].choice_probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    assert answers['b2'].text == ('yes', 'no', 'maybe not')[int(expected.argmax())]



# Rules broken on the reference's side: each must show as far more than rounding.

def _see(looker, seen):
    def fault(visible, rows):
        visible[rows[looker], rows[seen]] = True
    return fault


def _miss(looker, hidden):
    def fault(visible, rows):
        visible[rows[looker], rows[hidden]] = False
    return fault


def _top_left(visible, rows):
    """The reference code's mask: r1 is causal from the first key on, not up to itself."""
    own = rows['r1']
    keys = [i for name in ('header', 'r0', 'r1') for i in range(rows[name].start, rows[name].stop)]
    size = own.stop - own.start
    wrong = torch.ones(size, len(keys), dtype=torch.bool).tril()
    visible[own.start:own.stop, keys] = wrong


MASK_FAULTS = {
    'top left': _top_left, 'a segment sees a note': _see('r1', 'note r0'),
    'a segment sees a question': _see('r2', 'Q a1'),
    'a note sees a question': _see('note r2', 'Q a1'),
    'a note sees the next segment': _see('note r1', 'r2'),
    'a question sees the future': _see('Q a1', 'r2'),
    'sessions see each other': _see('Q a2', 'A b1'),
    'an earlier answer is missing': _miss('A a3', 'A a1'),
    'a note is missing': _miss('Q b3', 'note r2'), 'the header is missing': _miss('r3', 'header'),
    'the question is missing': _miss('A a2', 'Q a2'),
}


@pytest.mark.parametrize('fault', MASK_FAULTS)
def test_this_comparison_notices_a_wrong_mask(fault):
    layout, _ = told('decoupled', 'tww')
    results = naive().forward(layout.units, 'decoupled', mask_fault=MASK_FAULTS[fault])
    assert worst(layout, results) > 100 * TOLERANCE


@pytest.mark.parametrize(('looker', 'seen', 'shift'), [
    ('Q a2', 'r0', 1), ('A a2', 'A a1', 1), ('note r1', 'note r0', -1), ('r3', 'header', 2)])
def test_this_comparison_notices_a_wrong_shift(looker, seen, shift):
    def fault(unit, places):
        if unit.name == looker:
            places[seen] = places[seen] + shift

    layout, _ = told('decoupled', 'tww')
    results = naive().forward(layout.units, 'decoupled', place_fault=fault)
    assert worst(layout, results) > 100 * TOLERANCE


def test_this_comparison_notices_the_other_scheme():
    layout, _ = told('decoupled', 'stock')
    assert worst(layout, naive().forward(layout.units, 'continuous')) > 100 * TOLERANCE


def test_texts_that_end_with_their_mark_equal_naive_float64(monkeypatch):
    """Tokens that the model writes early are declared marks, so that notes and answers stop."""
    before, _ = told('continuous', 'stock')
    ends = frozenset(ids[2] for ids in before.generated.values())
    loaded = model('continuous', 'stock')
    monkeypatch.setattr(loaded, 'note_ends', ends)
    monkeypatch.setattr(loaded, 'answer_ends', ends)
    recorder, answers, _ = run(loaded, config(), STORY, monkeypatch)
    layout = lay_out(loaded.tokenizer, recorder, STORY, 'stock', note_limit=NOTE_LIMIT)
    layout.ends = {name: set(ends) for name in layout.ends}
    check(layout, 'continuous')
    assert {answer.finish_reason for answer in answers.values()} >= {'stop', 'choice'}
    assert sum(map(len, layout.generated.values())) < sum(map(len, before.generated.values()))


# Windows and budgets: a patch of 64×64 px is 19 tokens, a segment of two frames 19, of four 38.

LONG = [
    segment('r0', 0.0), segment('r1', 2.0, frames=4), segment('r2', 4.0),
    segment('r3', 6.0, frames=3), Ask('a1', 'a', 'First?', limit=3),
    segment('r4', 8.0, frames=4), segment('r5', 10.0), Ask('a2', 'a', 'Second?', limit=3),
    segment('r6', 12.0, frames=4), Ask('a3', 'a', 'Third?', limit=2),
]


@pytest.mark.parametrize('scheme', ['continuous', 'decoupled'])
@pytest.mark.parametrize(('memory', 'budgets'), [
    ({'read_window_tokens': 60}, Budgets(read=60)),
    ({'read_window_tokens': 0, 'resident_note_tokens': 0}, Budgets(read=0, resident_notes=0)),
    ({'resident_tokens': 80, 'resident_note_tokens': 250},
     Budgets(resident=80, resident_notes=250)),
    ({'note_window': 40, 'read_window_tokens': 40}, Budgets(note=40, read=40)),
    ({'device_bytes': 500 * 2_048, 'quantized_bytes': 0, 'host_bytes': 0}, Budgets(held=500)),
])
def test_windows_and_budgets_equal_naive_float64(scheme, memory, budgets, monkeypatch):
    loaded = model(scheme, 'stock')
    assert loaded.block_shape.token_bytes == 2_048
    recorder, _, segments = run(loaded, config(**memory), LONG, monkeypatch)
    layout = lay_out(loaded.tokenizer, recorder, LONG, 'stock', note_limit=NOTE_LIMIT,
                     budgets=budgets)
    check(layout, scheme)
    lost = [part for unit in layout.units for part in ('r0', 'r1', 'note r0')
            if unit.name in ('r6', 'Q a3', 'note r6') and part not in unit.sees]
    assert lost, 'nothing was dropped: this story does not test what it should'
    if budgets.held < 10_000:
        assert {s.tier for s in segments} == {'device', 'note'}


@pytest.mark.parametrize(('scheme', 'style'), [('continuous', 'stock'), ('decoupled', 'tww')])
def test_notes_that_lag_behind_the_reading_equal_naive_float64(scheme, style, monkeypatch):
    """Live, all frames are there before the first step: notes are packed with later segments."""
    story = [segment(f'r{n}', 2.0 * n) for n in range(5)]
    loaded, seen, all_seen = model(scheme, style), [], threading.Event()
    encode, step = loaded.encode_patch, loaded.step

    def count(pixels):
        seen.append(pixels)
        if len(seen) == len(story):
            all_seen.set()
        return encode(pixels)

    def wait(spans):
        assert all_seen.wait(30)
        return step(spans)

    monkeypatch.setattr(loaded, 'encode_patch', count)
    monkeypatch.setattr(loaded, 'step', wait)
    live = dataclasses.replace(config(), step=StepConfig(chunk_tokens=29, measure=False))
    recorder, _, _ = run(loaded, live, story, monkeypatch)
    layout = lay_out(loaded.tokenizer, recorder, story, style, note_limit=NOTE_LIMIT)
    check(layout, scheme)
    order = [id(layout.blocks[name].block) for name in ('r3', 'note r1')]
    used = [id(span.block) for spans in recorder.steps for span in spans]
    assert used.index(order[0]) < used.index(order[1]), 'this note did not lag behind'
    assert max(map(len, recorder.steps)) == 2


@pytest.mark.parametrize(('scheme', 'style'), [('continuous', 'stock'), ('decoupled', 'tww')])
def test_two_cameras_windows_in_time_and_choices_of_cameras_equal_naive_float64(
        scheme, style, monkeypatch):
    story = [
        segment('f0', 0.0, 4, camera='front'), segment('b0', 0.25, 4, camera='back'),
        segment('f1', 2.0, 3, camera='front'), segment('b1', 2.25, 2, camera='back'),
        Ask('a1', 'a', 'Both?'), Ask('a2', 'a', 'What is behind?', cameras=('back',)),
        segment('b2', 4.0, 2, camera='back'), segment('f2', 4.25, 4, height=96, camera='front'),
        Ask('a3', 'a', 'What was at first?', window_s=(0.0, 1.75)),
        Ask('b1', 'b', 'What was in front then?', cameras=('front',), window_s=(1.6, 2.4)),
        Ask('a4', 'a', 'And now?'),
    ]
    loaded = model(scheme, style)
    recorder, answers, segments = run(loaded, config(label_cameras=True), story, monkeypatch)
    layout = lay_out(loaded.tokenizer, recorder, story, style, note_limit=NOTE_LIMIT,
                     label_cameras=True)
    check(layout, scheme)
    sees = {unit.name: unit.sees for unit in layout.units}
    assert sees['f2'] == ['header', 'f0', 'f1'] and 'f0' not in sees['Q a2']
    assert {'f0', 'b0'} <= set(sees['Q a3']) and not {'b1', 'f1', 'f2'} & set(sees['Q a3'])
    assert [s.camera for s in segments] == ['front', 'back'] * 2 + ['back', 'front']
    assert {e.camera for e in answers['a2'].evidence} == {'back'}
