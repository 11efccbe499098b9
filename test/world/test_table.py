"""The tabletop's ground truth: the same seed the same world, and every world a possible one.

What is expected comes from a naive simulation of its own (a dict from place name to thing name).
"""

import collections

import pytest

from tww_ros.world.table import (
    KINDS,
    PLACES,
    TEST_SEEDS,
    THINGS,
    TRAIN_SEEDS,
    Episode,
    Pace,
    Thing,
    simulate,
)

SEEDS = [*range(20), *range(TEST_SEEDS.start, TEST_SEEDS.start + 20)]
DURATION_S = 240.0


def replay(episode):
    """[(things by place name, covered place names)] before the first event and after each."""
    things = {PLACES[k]: thing.name for k, thing in enumerate(episode.initial.things) if thing}
    covered = {PLACES[k] for k in episode.initial.covered}
    history = [(dict(things), set(covered))]
    for event in episode.events:
        place, name = PLACES[event.place], event.thing.name
        if event.kind == 'put':
            assert place not in things and name not in things.values()
            things[place] = name
        elif event.kind == 'take':
            assert things[place] == name and place not in covered
            del things[place]
        elif event.kind == 'move':
            before = PLACES[event.from_place]
            assert things[before] == name and place not in things and before not in covered
            things[place] = things.pop(before)
        elif event.kind == 'swap':
            before = PLACES[event.from_place]
            assert (things[before], things[place]) == (name, event.other.name)
            assert not {before, place} & covered
            things[before], things[place] = things[place], things[before]
        elif event.kind == 'cover':
            assert things[place] == name and place not in covered
            covered.add(place)
        else:
            assert event.kind == 'uncover' and things[place] == name and place in covered
            covered.remove(place)
        history.append((dict(things), set(covered)))
    return history


def named(state):
    return ({PLACES[k]: thing.name for k, thing in enumerate(state.things) if thing},
            {PLACES[k] for k in state.covered})


@pytest.mark.parametrize('seed', SEEDS)
def test_states_are_those_of_a_naive_simulation(seed):
    episode = simulate(seed, DURATION_S)
    history = replay(episode)
    assert [named(state) for state in episode.states] == history
    pace = Pace()
    for things, covered in history:
        assert len(things) <= pace.most_things and len(covered) <= pace.most_covers
        assert covered <= set(things)
        assert len(set(things.values())) == len(things)


@pytest.mark.parametrize('seed', SEEDS)
def test_events_are_in_order_and_the_table_rests_between_them(seed):
    pace = Pace(rest_s=1.5, gap_s=1.0)
    events = simulate(seed, DURATION_S, pace).events
    assert [event.number for event in events] == list(range(len(events)))
    ends_s = 0.0
    for event in events:
        assert event.start_s >= ends_s + (pace.rest_s if event.number else 1.0)
        assert event.start_s + 1.0 < event.end_s <= DURATION_S
        ends_s = event.end_s


@pytest.mark.parametrize('seed', SEEDS[::8])
def test_state_and_event_at_any_time_follow_from_the_list_of_events(seed):
    episode = simulate(seed, DURATION_S)
    times_s = [k * 0.37 for k in range(int(DURATION_S / 0.37))]
    times_s += [time_s for event in episode.events for time_s in (event.start_s, event.end_s)]
    history = replay(episode)
    for t_s in times_s:
        under_way = [event for event in episode.events if event.start_s <= t_s < event.end_s]
        over = [event for event in episode.events if event.end_s <= t_s]
        assert episode.event_at(t_s) == (under_way[0] if under_way else None)
        assert named(episode.state_at(t_s)) == history[len(over)]


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert [simulate(seed, DURATION_S) for seed in SEEDS] == \
        [simulate(seed, DURATION_S) for seed in SEEDS]
    assert len({simulate(seed, DURATION_S).events for seed in SEEDS}) == len(SEEDS)


def test_a_longer_world_starts_like_a_shorter_one():
    for seed in SEEDS[:5]:
        events = simulate(seed, 300.0).events
        assert events[:len(simulate(seed, 100.0).events)] == simulate(seed, 100.0).events


def test_worlds_for_training_and_for_tests_are_others():
    assert TRAIN_SEEDS.step == TEST_SEEDS.step == 1
    assert TRAIN_SEEDS.start < TRAIN_SEEDS.stop <= TEST_SEEDS.start < TEST_SEEDS.stop

    def stories(seeds):
        return {tuple((event.kind, event.thing, event.place) for event in
                      simulate(seed, 60.0).events[:5]) for seed in seeds}

    train, test = stories(TRAIN_SEEDS[:300]), stories(TEST_SEEDS[:300])
    assert len(train) == len(test) == 300
    assert not train & test


def test_everything_happens_to_everything_everywhere():
    events = [event for seed in range(60) for event in simulate(seed, DURATION_S).events]
    kinds = collections.Counter(event.kind for event in events)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 0.02 * len(events)
    assert {event.thing for event in events} == set(THINGS)
    for kind in KINDS:
        assert {event.place for event in events if event.kind == kind} == set(range(len(PLACES)))


def test_a_world_without_events_rests():
    episode = Episode(1, 10.0, simulate(3, 100.0).states[-1], ())
    assert episode.state_at(5.0) == episode.initial and episode.event_at(5.0) is None


def test_a_thing_is_found_by_its_name():
    state = simulate(5, DURATION_S).states[-1]
    for place, thing in enumerate(state.things):
        if thing is not None:
            assert state.place_of(Thing(*thing.name.split())) == place
