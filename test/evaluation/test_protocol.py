"""Plans: worlds nobody trained on, notes and answers as the ground truth has them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from tww_ros.config import WatchConfig
from tww_ros.errors import ConfigError
from tww_ros.evaluation.protocol import FAR, PlannedSegment, Protocol, plan_streams, recent
from tww_ros.world.notes import state_text
from tww_ros.world.table import PLACES, TEST_SEEDS, TRAIN_SEEDS

from .conftest import SMALL, watch_config


@pytest.fixture(scope='module')
def long_plans():
    return plan_streams(Protocol(seed=3, questions=120, streams=3), watch_config(), 2)


def all_planned(plans):
    return [(plan, moment, planned) for plan in plans for moment in plan.moments
            for planned in moment.questions]


def test_worlds_for_tests_are_none_for_training(plans, long_plans):
    assert not set(TRAIN_SEEDS[::1_000_000]) & set(TEST_SEEDS[::1_000_000])
    assert TRAIN_SEEDS.stop <= TEST_SEEDS.start
    seeds = [plan.episode.seed for plan in (*plans, *long_plans)]
    assert all(seed in TEST_SEEDS and seed not in TRAIN_SEEDS for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def texts_of(event, events):
    """What a note says of an event, without its time."""
    name, place = event.thing.name, PLACES[event.place]
    if event.kind == 'put':
        number = sum(other.kind == 'put' for other in events[:event.number + 1])
        return [f'#{number} {name} put {place}']
    if event.kind in ('move', 'swap'):
        old = PLACES[event.from_place]
        moved = {event.place: f'{name} moved {place} from {old}'}
        if event.kind == 'swap':
            moved[event.from_place] = f'{event.other.name} moved {old} from {place}'
        return [moved[at] for at in sorted(moved)]
    past = {'take': 'taken', 'cover': 'covered', 'uncover': 'uncovered'}[event.kind]
    return [f'{name} {past} {place}']


def test_same_arguments_same_plans(plans):
    assert plan_streams(SMALL, watch_config(), 2) == plans
    other = plan_streams(Protocol(**{**vars(SMALL), 'seed': 2}), watch_config(), 2)
    assert [p.episode.seed for p in other] != [p.episode.seed for p in plans]
    assert other[0].moments != plans[0].moments


@pytest.mark.parametrize('watch', [
    watch_config(), WatchConfig(sample_fps=2.0, segment_s=4.0), WatchConfig(segment_s=1.0)])
def test_notes_tell_what_happened_in_their_segment(watch):
    for plan in plan_streams(SMALL, watch, 2):
        episode, zero_ns = plan.episode, plan.stamps_ns[0]
        stamps = [stamp for segment in plan.segments for stamp in segment.stamps_ns]
        assert tuple(stamps) == plan.stamps_ns
        before_s = -1.0
        for number, segment in enumerate(plan.segments):
            first, last = segment.stamps_ns[0], segment.stamps_ns[-1]
            assert (last - first) / 1e9 < watch.segment_s
            shown = f'{((first + segment.stamps_ns[:2][-1]) // 2 - zero_ns) / 1e9:.1f}'
            told = [f'start: {state_text(episode.initial)}'] if number == 0 else []
            for event in episode.events:
                if before_s < event.end_s <= last / 1e9:
                    told += [f'{text} at {int(float(shown))} s'
                             for text in texts_of(event, episode.events)]
            assert segment.note == ('; '.join(told) or 'nothing new')
            before_s = last / 1e9


def test_moments_are_at_rest_and_end_a_segment(plans, long_plans):
    for plan in (*plans, *long_plans):
        for moment in plan.moments:
            newest_ns = plan.stamps_ns[moment.frames - 1]
            assert plan.segments[moment.segment].stamps_ns[-1] == newest_ns
            assert plan.episode.event_at(newest_ns / 1e9) is None
        assert plan.moments[-1].frames == len(plan.stamps_ns)


def test_present_answers_are_what_stands_there(plans, long_plans):
    checked = Counter()
    for plan, moment, planned in all_planned([*plans, *long_plans]):
        made = planned.question
        state = plan.episode.state_at(plan.stamps_ns[moment.frames - 1] / 1e9)
        if made.kind == 'how_many_now':
            assert made.answer == str(sum(thing is not None for thing in state.things))
        elif made.kind == 'what_at':
            place = PLACES.index(re.search(r'at the ([a-z ]+?)( now)?\?$', made.text)[1])
            thing = state.things[place]
            assert made.answer == ('nothing' if thing is None else 'a cover'
                                   if place in state.covered else thing.name)
        else:
            continue
        checked[made.kind] += 1
    assert min(checked['how_many_now'], checked['what_at']) > 10


def test_distance_counts_segments_back_to_the_proof(long_plans):
    checked = 0
    for plan, moment, planned in all_planned(long_plans):
        made = planned.question
        if made.kind == 'when' and made.answer.startswith('at '):
            name = re.search(r'the (\w+ \w+) put', made.text)[1]
            proving = [number for number, segment in enumerate(plan.segments)
                       if re.search(rf'#\d+ {name} put [a-z ]+ {made.answer}(;|$)', segment.note)]
            assert planned.distance == moment.segment - proving[-1]
            checked += 1
        if planned.lot == 'far':
            assert planned.distance >= FAR and made.family == 'backward'
            # What the newest frame shows needs no memory.
            state = plan.episode.state_at(plan.stamps_ns[moment.frames - 1] / 1e9)
            assert made.kind != 'ever' or made.subject not in state.things or (
                state.place_of(made.subject) in state.covered)
    assert checked > 20


def test_lots_are_as_large_as_asked_for(long_plans):
    planned = [entry[2] for entry in all_planned(long_plans)]
    lots = Counter(entry.lot for entry in planned)
    assert 120 <= lots['multi'] < 120 + 16 and lots['single'] == lots['multi']
    single = [entry for entry in planned if entry.lot == 'single']
    present = sum(entry.question.family == 'present' for entry in single)
    far = sum(entry.question.family == 'backward' and (entry.distance or 0) >= FAR
              for entry in single)
    assert present + lots['present'] == 120
    assert 100 <= far + lots['far'] <= 120
    with_choices = sum(bool(entry.question.choices) for entry in planned)
    assert 0.4 < with_choices / len(planned) < 0.6


def test_sessions_are_long_and_single_questions_alone(long_plans):
    for plan in long_plans:
        sessions = defaultdict(list)
        for _, _, planned in all_planned([plan]):
            sessions[planned.session].append(planned)
        for rounds in sessions.values():
            if rounds[0].lot == 'multi':
                assert 8 <= len(rounds) <= 16
                assert [planned.number for planned in rounds] == list(range(len(rounds)))
            else:
                assert len(rounds) == 1


def test_a_round_and_its_twin_ask_the_same(long_plans):
    pairs = defaultdict(dict)
    for number, plan in enumerate(long_plans):
        for _, moment, planned in all_planned([plan]):
            if planned.lot in ('multi', 'single'):
                pairs[number, planned.pair][planned.lot] = planned, moment
    follow_ups = 0
    for both in pairs.values():
        (ours, when), (twin, then) = both['multi'], both['single']
        assert when is then and ours.distance == twin.distance
        assert ours.question.answer == twin.question.answer
        assert ours.question.choices == twin.question.choices
        assert 'And ' not in twin.question.text and twin.question.family != 'follow-up'
        if ours.question.family == 'follow-up':
            follow_ups += 1
            assert f'the {ours.question.subject.name}' in twin.question.text
            assert ours.question.subject.name not in ours.question.text
        else:
            assert ours.question == twin.question
    assert follow_ups > 10


def test_far_questions_come_once_in_a_stream(long_plans):
    for plan in long_plans:
        texts = [planned.question.text for _, _, planned in all_planned([plan])
                 if planned.lot == 'far']
        assert len(set(texts)) == len(texts) > 10


def test_the_newest_segments_with_at_most_so_many_frames():
    segments = [PlannedSegment(stamps, '') for stamps in
                ((0, 1), (2, 3), (4,), (5, 6), (7,), (8, 9))]
    assert recent(segments, 3, 4) == (4, 6)     # with (2, 3) there would be five
    assert recent(segments, 5, 4) == (7, 9)
    assert recent(segments, 1, 4) == (0, 3)
    assert recent(segments, 3, 1) == (5, 6)     # the newest one in any case


@pytest.mark.parametrize('wrong, message', [
    ({'questions': 0}, 'questions: expected 1 or more'),
    ({'streams': 0}, 'streams: expected 1 or more'),
    ({'segments': 7}, 'segments: expected at least two for each of the 6 moments, got 7'),
])
def test_impossible_protocols_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Protocol(**wrong)
