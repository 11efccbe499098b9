"""Jobs: cut spans give what whole ones give; and who waits for whom in an engine; no clocks."""

import itertools

import pytest
import torch
from engine.harness import WAIT_S, clip, until, watch
from engine.machines import COSTS
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros import Question
from tww_ros.engine import watcher
from tww_ros.engine.answering import _Stream
from tww_ros.engine.job import Job, results_of
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.scheduler import NOTE_PATIENCE
from tww_ros.memory.view import Part, View
from tww_ros.model.run import Span, TokenRun
from tww_ros.model.scripted import ScriptedModel

# Jobs

@pytest.fixture(scope='module')
def sink(tiny):
    block = tiny.new_block()
    tiny.step([Span(block, View((), 0, 0), TokenRun.text(tiny.encode('<|im_start|>user\n'), 0))])
    return Part(block, block.length, 0)


def question_and_choices(tiny, sink):
    """A question, what begins behind it in the same step, and whole texts behind that."""
    question, begun = tiny.encode('what is it on the table?'), tiny.encode('Answer: ')
    view = View((sink,), sink.length, sink.length)
    branch = tiny.new_block(view.next_source)
    behind = View((sink, Part(branch, len(question), 0)), branch.start + len(question),
                  branch.start + len(question))
    block = tiny.new_block(behind.next_target)
    mass = torch.zeros(3)
    spans = [Span(branch, view, TokenRun.text(question, branch.start)),
             Span(block, behind, TokenRun.text(begun, block.start), 'last', mass)]
    for text in ('red', 'a colour'):
        ids = tiny.encode(text)
        spans.append(Span(tiny.new_block(behind.next_target), behind,
                          TokenRun.text(ids, behind.next_target), 'all'))
    return spans, mass


def run(tiny, spans, budgets):
    """The results of a program that wants these spans, with so many tokens a step."""
    given = []

    def program():
        given.extend((yield spans))

    job, steps = Job(program()), 0
    for budget in itertools.cycle(budgets):
        if job.done:
            return given, steps
        total = job.rows
        taken = job.take(budget)
        assert sum(len(span.run) for span in taken) == min(budget, total)
        job.advance(results_of(tiny.step(taken)))
        steps += 1
    return None


@settings(max_examples=12, deadline=None, derandomize=True)
@given(budgets=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_cut_spans_give_what_whole_ones_give(tiny, sink, budgets):
    spans, mass = question_and_choices(tiny, sink)
    one_by_one, lengths = [], [len(span.run) for span in spans]
    for span in spans:
        one_by_one += tiny.step([span])
    other, other_mass = question_and_choices(tiny, sink)
    given, _ = run(tiny, other, budgets)
    assert [None if rows is None else len(rows) for rows, _ in given] == [None, 1, *lengths[2:]]
    for whole, (rows, token) in zip(one_by_one[1:], given[1:], strict=True):
        assert torch.allclose(whole, rows, rtol=0, atol=1e-5)
        assert token == (int(whole[0].argmax()) if len(whole) == 1 else None)
    assert torch.allclose(mass, other_mass, rtol=0, atol=1e-5)
    for span, copy in zip(spans, other, strict=True):
        length = span.block.length
        assert copy.block.length == length == len(span.run)
        assert torch.allclose(span.block.keys[:, :, :length], copy.block.keys[:, :, :length],
                              rtol=0, atol=1e-5)


def test_all_spans_of_a_program_share_one_step_when_there_is_room(tiny, sink):
    _, steps = run(tiny, question_and_choices(tiny, sink)[0], [1_000])
    assert steps == 1


# Pieces of text

@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=30).map(lambda text: ScriptedModel().encode_user(text)),
                 st.lists(st.integers(0, 319), max_size=30)))
def test_pieces_are_the_text_however_its_bytes_are_cut(ids):
    model, pending = ScriptedModel(), PendingAnswer(Question('what?'))
    stream = _Stream(model, pending)
    for count in range(1, len(ids) + 1):
        stream.tokens(ids[:count])
        assert model.decode(ids[:count]).startswith(pending.text())
        assert not pending.text().endswith('\ufffd')
    whole = model.decode(ids)
    assert stream.delivered == len(pending.text())
    assert pending.text() == whole or whole[stream.delivered:].endswith('\ufffd')


# Engines

def test_a_note_under_way_yields_from_the_moment_of_asking(start, gate):
    """Also while the question is still behind a full inbox; every ninth step it goes on."""
    noted, steps = [], []

    def before(spans):
        # What a note begins with, cut at four tokens.
        noted.extend(span.block for span in spans if model.decode(span.run.ids) == 'In o')
        steps.append(any(span.block is block for span in spans for block in noted))
        gate(spans)

    model = ScriptedModel(note='a note of some length ' * 9, before_step=before)
    engine = start(model, step__chunk_tokens=4, step__read_ahead_patches=2,
                   note__max_new_tokens=300)
    gate.close()
    for one in [*clip(0, 2), *clip(2, 8, size=(256, 256))]:
        engine.push(one)
    while steps[-5:] != [True] * 5:
        gate.let()
        gate.wait()
    pending = engine.ask(Question('what?'))
    held = len(steps)
    gate.let(30)
    gate.wait()
    assert steps[held:held + 27] == ([False] * NOTE_PATIENCE + [True]) * 3
    assert pending.first_token_s is None and pending.started_s is None
    gate.open()
    assert pending.result(WAIT_S).text == 'yes'


def test_a_question_of_a_busy_session_does_not_hold_notes_up(start, gate):
    noted = []

    def before(spans):
        gate(spans)
        noted.append(len(spans))

    engine = start(ScriptedModel(answer='word ' * 60, note='some words ' * 5, before_step=before),
                   answer__max_new_tokens=400)
    watch(engine, clip(0, 2))
    gate.close()
    first = engine.ask(Question('what?', max_new_tokens=300))
    while first.first_token_s is None:
        gate.let()
        gate.wait()
    for one in clip(2, 4):
        engine.push(one)
    second = engine.ask(Question('and?', max_new_tokens=300))
    while engine.stats().notes_waiting == 0:
        gate.let()
        gate.wait()
    gate.let(3)
    noted.clear()
    gate.let(20)
    # An answer's token and a note's in each step, though the second question has none yet.
    assert noted == [2] * 20
    assert second.first_token_s is None
    gate.open()
    assert second.result(WAIT_S).text


def test_an_engine_on_a_machine_with_a_fast_kernel_for_four_rows(start, gate):
    sizes = []

    def before(spans):
        gate(spans)
        sizes.append(len(spans))

    model = ScriptedModel(answer='word ' * 60, before_step=before, step_costs=COSTS['orin'])
    engine = start(model, step__measure=True, note__enabled=False, answer__max_new_tokens=400)
    watch(engine, clip(0, 2))
    gate.close()
    pending = [engine.ask(Question('what?', session=str(n), max_new_tokens=300))
               for n in range(8)]
    while any(one.first_token_s is None for one in pending):
        gate.let()
        gate.wait()
    gate.let(2)
    sizes.clear()
    before_tokens = [len(one.text()) for one in pending]
    gate.let(40)
    gate.wait()
    assert sizes[:40] == [4] * 40
    grown = [len(one.text()) - before for one, before in zip(pending, before_tokens, strict=True)]
    assert set(grown) <= {19, 20, 21}
    gate.open()
    assert all(one.result(WAIT_S).text for one in pending)


def test_the_watcher_lets_an_answer_begin_before_it_encodes_what_came_later(start, gate,
                                                                           monkeypatch):
    class Counting(ScriptedModel):
        patches = 0

        def encode_patch(self, pixels):
            self.patches += 1
            return super().encode_patch(pixels)

    monkeypatch.setattr(watcher, 'ANSWER_PAUSE_S', WAIT_S)
    model = Counting(before_step=gate)
    engine = start(model, note__enabled=False)
    watch(engine, clip(0, 2))
    gate.close()
    pending = engine.ask(Question('what?'))
    for one in clip(2, 4):
        engine.push(one)
    until(lambda: engine._watcher._frames == 2, 'a patch came behind the question')
    assert model.patches == 2
    while pending.first_token_s is None:
        assert model.patches == 2
        gate.let()
        gate.wait()
    until(lambda: model.patches == 4, 'watching went on')
    gate.open()
    assert pending.result(WAIT_S).as_of_ns == 1_500_000_000
    # A question that comes later stands behind that patch, and is not waited for.
    gate.close()
    pending = [engine.ask(Question('what?')), *(engine.push(one) for one in clip(4, 5)),
               engine.ask(Question('what?', session='b'))]
    gate.open()
    assert pending[-1].result(WAIT_S).as_of_ns == 4_500_000_000


def test_an_odd_frame_behind_a_question_is_not_encoded_before_the_answer_begins(start, gate,
                                                                               monkeypatch):
    monkeypatch.setattr(watcher, 'ANSWER_PAUSE_S', WAIT_S)
    model, encoded = ScriptedModel(before_step=gate), []
    encode = model.encode_patch
    monkeypatch.setattr(model, 'encode_patch',
                        lambda pixels: (encoded.append(pending), encode(pixels))[1])
    engine, pending = start(model, note__enabled=False, watch__look_ahead=True,
                            watch__idle_close_s=100.0), None
    watch(engine, clip(0, 2))
    encoded.clear()
    gate.close()
    pending = engine.ask(Question('what?'))
    engine.push(clip(2, 3)[0])
    until(lambda: engine._watcher._ahead, 'the frame was looked at')
    while pending.first_token_s is None:
        assert not encoded
        gate.let()
        gate.wait()
    until(lambda: encoded == [pending], 'it was encoded')
    gate.open()
    assert pending.result(WAIT_S).text == 'yes'
