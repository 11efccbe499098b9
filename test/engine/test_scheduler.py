"""What shares a step: budgets, turns, shares and promises, against brute force; no clocks."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.harness import WAIT_S, clip, until, watch
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros import Question
from tww_ros.config import StepConfig
from tww_ros.engine import watcher
from tww_ros.engine.answering import _Stream
from tww_ros.engine.job import Job, results_of
from tww_ros.engine.pending import PendingAnswer
from tww_ros.engine.scheduler import LEAST_READ, NOTE_PATIENCE, Scheduler
from tww_ros.errors import ConfigError
from tww_ros.memory.view import Part, View
from tww_ros.model.costs import SIZES, StepCosts, measure_costs
from tww_ros.model.run import Span, TokenRun
from tww_ros.model.scripted import ScriptedModel

# Milliseconds by rows.
MACHINES = {
    'orin': {1: 10, 4: 10, 5: 60, 16: 62, 64: 90, 256: 190, 512: 330},
    'h200': {1: 10, 4: 10, 5: 10, 64: 11, 256: 13, 512: 17},
    'cpu': {1: 2, 4: 3, 64: 17, 256: 62, 512: 121},
    'steps': {1: 5, 8: 5, 9: 20, 32: 20, 33: 50, 128: 50, 129: 200},
}
COSTS = {name: StepCosts(tuple(table), tuple(ms / 1e3 for ms in table.values()))
         for name, table in MACHINES.items()}


def seconds(name, rows):
    """By hand: straight lines between what was measured, in proportion beyond."""
    points = [(0, 0.0), *((size, ms / 1e3) for size, ms in MACHINES[name].items())]
    for (low, low_s), (high, high_s) in itertools.pairwise(points):
        if low < rows <= high:
            return high_s if low == 0 else low_s + (high_s - low_s) * (rows - low) / (high - low)
    return points[-1][1] * rows / points[-1][0] if rows else 0.0


class Pile:
    """Work of some rows; `many` a time, one after the other."""

    def __init__(self, *rows):
        self.left = list(rows)
        self.given = 0

    @property
    def rows(self):
        return self.left[0] if self.left else 0

    def take(self, budget):
        assert budget >= 0
        self.given = min(budget, self.rows)
        return [SimpleNamespace(run=range(self.given))] if self.given else []

    def advance(self):
        self.left[0] -= self.given
        if not self.left[0]:
            self.left.pop(0)


def decoders(count):
    return [Pile(*[1] * 10_000) for _ in range(count)]


def rows_of(step):
    return {work: sum(len(span.run) for span in spans) for work, spans in step}


def take(scheduler, answers, reading, note=None, urgent=False):
    """One step: rows by who is in it."""
    rows = rows_of(scheduler.pack(answers, reading, note, urgent))
    for work in rows:
        work.advance()
    return rows


# Fairness

COST_TABLES = st.one_of(st.none(), st.sampled_from(list(COSTS.values())), st.lists(
    st.floats(1e-4, 0.3), min_size=2, max_size=6).map(
        lambda times: StepCosts(SIZES[:2 * len(times):2], tuple(np.cumsum(times).tolist()))))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_budget_holds_and_nobody_starves_whatever_comes_when(data):
    config = StepConfig(tokens=data.draw(st.sampled_from([0, 16, 100])),
                        token_ms=data.draw(st.sampled_from([0.0, 1.0, 40.0])),
                        chunk_tokens=data.draw(st.sampled_from([1, 8, 256])))
    scheduler = Scheduler(config, data.draw(COST_TABLES))
    arrivals = data.draw(st.dictionaries(st.integers(0, 60), st.lists(st.tuples(
        st.sampled_from(['answer', 'patch', 'note']), st.integers(1, 120)), max_size=3)))
    answers, reading, notes, waited = [], Pile(), Pile(), {}
    for step in range(70):
        for kind, rows in arrivals.get(step, ()):
            if kind == 'answer' and len(answers) < 6:
                answers.append(Pile(rows, *[1] * 200))
            elif kind == 'patch':
                reading.left.append(rows)
            elif kind == 'note':
                notes.left += [rows, *[1] * 20]
        took = take(scheduler, answers, reading, notes, data.draw(st.booleans()))
        assert sum(took.values()) <= scheduler.budget
        assert all(rows <= config.chunk_tokens for work, rows in took.items())
        # A long question waits for the one before it, everything else has a right of its own.
        prefills = [work for work in answers if work.rows > 1]
        for work in (*(work for work in answers if work.rows == 1), *prefills[:1], reading, notes):
            waited[work] = waited.get(work, 0) + 1 if work.rows and work not in took else 0
            assert waited[work] <= 16


def test_many_questions_at_once_leave_reading_its_share():
    scheduler = Scheduler(StepConfig(tokens=64, chunk_tokens=64))
    answers, reading = [Pile(100) for _ in range(20)], Pile(*[100] * 5)
    shares = [take(scheduler, answers, reading) for _ in range(30)]
    assert all(sum(share.values()) == 64 for share in shares)
    assert [share[reading] for share in shares[:25]] == [16, 16, 16, 16, 16, 16, 4] * 3 + [
        16, 16, 16, 16]
    # Questions in the order in which they came.
    ends = [max(n for n, share in enumerate(shares) if answer in share) for answer in answers[:10]]
    assert ends == sorted(ends)


def test_a_note_lets_eight_steps_pass_while_somebody_waits_and_none_otherwise():
    scheduler = Scheduler(StepConfig())
    reading, note = Pile(*[5] * 100), Pile(*[1] * 100)
    turns = [note in take(scheduler, [], reading, note, urgent=True) for _ in range(27)]
    assert turns == ([False] * NOTE_PATIENCE + [True]) * 3
    assert all(note in take(scheduler, [], reading, note) for _ in range(9))
    # Alone it pauses too: the step that it would take is what the question would wait for.
    assert take(scheduler, [], Pile(), note, urgent=True) == {}


def test_deterministic_one_job_a_step():
    scheduler = Scheduler(StepConfig(deterministic=True, chunk_tokens=8), COSTS['orin'])
    answers, reading, note = [Pile(20), Pile(1)], Pile(9), Pile(1)
    steps = [list(take(scheduler, answers, reading, note, urgent=True).items())
             for _ in range(8)]
    assert steps == [[(answers[0], 8)], [(answers[0], 8)], [(answers[0], 4)], [(answers[1], 1)],
                     [(reading, 8)], [(reading, 1)], [(note, 1)], []]


def test_a_budget_must_have_room_for_all():
    with pytest.raises(ConfigError, match='16'):
        StepConfig(tokens=3)


# Costs

@pytest.mark.parametrize('name', MACHINES)
def test_table_least_rows_and_promise(name):
    costs = COSTS[name]
    assert costs.table(700) == pytest.approx([seconds(name, rows) for rows in range(701)])
    for share, most in itertools.product((0.5, 0.9), (1, 7, 256, 512)):
        pace = [rows / seconds(name, rows) for rows in range(1, most + 1)]
        assert costs.least_rows(share, most) == 1 + next(
            n for n, value in enumerate(pace) if value >= share * max(pace))
    scheduler = Scheduler(StepConfig(), costs)
    half = seconds(name, costs.least_rows(0.5, 256))
    assert scheduler.promise_s == pytest.approx(
        max(0.02, 3 * seconds(name, 1), seconds(name, 1) + half))
    assert 256 <= scheduler.budget <= 512


def test_noise_makes_no_step_dearer_than_a_larger_one():
    table = StepCosts((1, 2, 4), (0.02, 0.01, 0.03)).table(6)
    assert table == pytest.approx([0, 0.01, 0.01, 0.02, 0.03, 0.0375, 0.045])


def cheapest_group(name, count):
    each = {many: seconds(name, many) / many for many in range(1, count + 1)}
    best = min(each, key=lambda many: (each[many], many))
    return count if each[count] <= 1.1 * each[best] else best


@pytest.mark.parametrize('name', MACHINES)
@pytest.mark.parametrize('token_ms', [0.0, 15.0, 70.0])
def test_the_plan_is_the_best_of_all_plans_that_keep_the_promise(name, token_ms):
    for count, waiting in itertools.product((1, 3, 4, 5, 8, 20), (1, 4, 9, 60, 200, 256)):
        scheduler = Scheduler(StepConfig(token_ms=token_ms), COSTS[name])
        group = cheapest_group(name, count)
        plans = {}
        for rows in range(1, waiting + 1):
            if group + rows <= scheduler.budget:
                plans[rows, 'at once'] = seconds(name, group + rows)
            plans[rows, 'in turns'] = seconds(name, group) + seconds(name, rows)
        kept = {plan: taken for plan, taken in plans.items() if taken <= scheduler.promise_s}
        best = max((rows / taken for (rows, _), taken in kept.items()), default=None)

        answers, reading = decoders(count), Pile(waiting)
        first = take(scheduler, answers, reading)
        assert sum(work is not reading for work in first) == group
        if reading in first:
            read, took_s = first[reading], seconds(name, group + first[reading])
        else:
            second = take(scheduler, answers, reading)
            assert list(second) == [reading]
            read, took_s = second[reading], seconds(name, group) + seconds(name, second[reading])
        if best is None:
            # It cannot be kept: a few tokens, in the cheaper way.
            assert read == min(LEAST_READ, waiting)
            assert took_s == pytest.approx(min(
                plans.get((read, 'at once'), 1e9), plans[read, 'in turns']))
        else:
            assert took_s <= scheduler.promise_s + 1e-9
            assert read / took_s == pytest.approx(best)


def test_a_note_alone_makes_reading_no_slower():
    """The promise is about the words of answers."""
    scheduler = Scheduler(StepConfig(token_ms=15.0), COSTS['cpu'])
    with_note, with_answer = Pile(200), Pile(200)
    step = take(scheduler, [], with_note, note=Pile(*[1] * 9))
    assert step.get(with_note) == 200 or take(scheduler, [], with_note)[with_note] == 200
    assert take(scheduler, decoders(1), with_answer).get(with_answer, 0) < 100


def test_machines_get_different_plans():
    """Eight that decode and a patch: all together where rows cost nothing, fours on an Orin."""
    def first(name, **config):
        scheduler = Scheduler(StepConfig(**config), COSTS[name])
        answers, reading = decoders(8), Pile(4)
        return [sorted(rows.values()) for rows in (
            take(scheduler, answers, reading) for _ in range(2))]

    assert first('h200') == [[1] * 8 + [4], [1] * 8]
    assert first('orin') == [[1] * 4, [4]]
    assert first('cpu') == [[1] * 8 + [4], [1] * 8]


def test_groups_take_turns_and_everybody_gets_the_same():
    scheduler = Scheduler(StepConfig(), COSTS['orin'])
    answers = decoders(10)
    counts = dict.fromkeys(answers, 0)
    for _ in range(50):
        took = take(scheduler, answers, Pile())
        assert len(took) == 4
        for work in took:
            counts[work] += 1
    assert set(counts.values()) == {20}


def test_a_promise_counts_what_steps_look_at():
    """Steps that take 10 ms longer than their rows alone leave less of the promise for reading."""
    def read(beside_s):
        scheduler = Scheduler(StepConfig(token_ms=30.0), COSTS['cpu'])
        for _ in range(100):
            scheduler.took(4, seconds('cpu', 4) + beside_s)
        reading = Pile(200)
        return take(scheduler, decoders(1), reading)[reading]

    assert seconds('cpu', 1 + read(0.0)) <= 0.030 < seconds('cpu', 2 + read(0.0))
    assert seconds('cpu', 1 + read(0.01)) <= 0.0201 < seconds('cpu', 3 + read(0.01))


def test_measuring_steps_until_there_is_no_more_room():
    sizes = []

    def before(spans):
        span, = spans
        sizes.append(len(span.run))
        if sizes[-1] > 64:
            raise RuntimeError('out of memory')

    costs = measure_costs(ScriptedModel(before_step=before))
    assert costs.rows == tuple(size for size in SIZES if size <= 64)
    assert len(costs.seconds) == len(costs.rows) and min(costs.seconds) > 0
    assert sorted(set(sizes)) == [size for size in SIZES if size <= 128]


def test_a_real_model_knows_its_costs(tiny):
    assert tiny.step_costs.rows[:4] == SIZES[:4]
    assert tiny.step_costs is tiny.step_costs
    assert '512 rows' in Scheduler(StepConfig(), tiny.step_costs).describe() or (
        tiny.step_costs.rows[-1] < 512)


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
