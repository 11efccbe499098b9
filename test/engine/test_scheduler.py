"""What shares a step: budgets, turns, shares and promises, against brute force; no clocks."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from engine.machines import COSTS, MACHINES
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros.config import StepConfig
from tww_ros.engine.scheduler import LEAST_READ, NOTE_PATIENCE, Scheduler
from tww_ros.errors import ConfigError
from tww_ros.model.costs import SIZES, StepCosts, measure_costs
from tww_ros.model.scripted import ScriptedModel


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
