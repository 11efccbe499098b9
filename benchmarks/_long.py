"""A long day: needles in thousands of frames, and what memory costs by the hour.

In: the embedded model and its settings, with every budget on. A needle world is an empty table
over hours; now and then a hand puts something down and takes it away seconds later. At the end
there are questions about these things, none of which can be seen any more.

    needle_accuracy                        questions about needles that are answered rightly
    first_token_<n>_frames_ms              median, idle, after so many frames: two engines of one
                                           process, asked in turn
    first_token_flatness                   after all frames ÷ after 100, median of the pairs
    device_bytes_hour_<h>, rss_bytes_hour_<h>, …_last_to_first
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import psutil
from _report import Report, median
from tqdm import tqdm

from tww_ros import Engine, EngineConfig, Frame, Question
from tww_ros.evaluation.protocol import CAMERA, Cutter
from tww_ros.evaluation.runner import OFFLINE
from tww_ros.evaluation.scoring import is_right, share
from tww_ros.model.protocol import StepModel
from tww_ros.types import NS_PER_S
from tww_ros.world.known import TableQuestion
from tww_ros.world.questions import Asker
from tww_ros.world.render import Renderer
from tww_ros.world.table import PLACES, TEST_SEEDS, THINGS, Episode, Event, TableState

FRAMES = 10_000
NEEDLES = 24
FEW = 100
# Kinds of questions that only a needle's own notes answer.
KINDS = ('last_place', 'when', 'ever', 'nth', 'order')
QUESTIONS = 150
WORLD_PX = 192
WAIT_S = 600.0
PROBES = 15
# Frames between two looks at the process.
HOUR_FRAMES = 3_600


def needle_world(seed: int, seconds: float, needles: int = NEEDLES) -> Episode:
    """An empty table on which `needles` things stand for some seconds each, hours apart."""
    rng = random.Random(f'needle {seed}')
    things = rng.sample(THINGS, needles)
    slot_s = (seconds - 60.0) / needles
    events: list[Event] = []
    for number, thing in enumerate(things):
        start_s = 20.0 + slot_s * number + rng.uniform(0.0, max(0.0, slot_s - 12.0))
        place = rng.randrange(len(PLACES))
        put = Event(len(events), 'put', start_s, start_s + rng.uniform(1.6, 2.4), thing, place)
        # It stands there for about a second, at rest.
        taken_s = put.end_s + rng.uniform(1.4, 2.4)
        events += [put, Event(put.number + 1, 'take', taken_s, taken_s + rng.uniform(1.6, 2.4),
                              thing, place)]
    return Episode(seed, seconds, TableState(), tuple(events))


def measure_needles(report: Report, model: StepModel, settings: dict, quick: bool) -> None:
    """Accuracy about needles, and whether first tokens stay as quick as at the start."""
    frames, worlds = (1_000, 1) if quick else (FRAMES, 7)
    verdicts: list[bool] = []
    few, many = [], []
    for number in range(worlds):
        episode = needle_world(TEST_SEEDS[5_000 + number], float(frames))
        config = EngineConfig.from_flat({**model.settings, **OFFLINE, **settings})
        cutter = Cutter(episode, config.watch, model.temporal_patch_size)
        with Engine(model, config) as engine, Engine(model, config) as young:
            for frame in watch(episode, FEW):
                young.feed(frame, WAIT_S)
            young.drain(WAIT_S)
            for frame in watch(episode, frames):
                engine.feed(frame, WAIT_S)
                cutter.add(frame.stamp_ns)
            engine.drain(WAIT_S)
            cutter.close()
            for probe in range(PROBES):
                few.append(first_token_s(young, probe))
                many.append(first_token_s(engine, probe))
            for made in questions(cutter, random.Random(number)):
                answer = engine.ask(Question(made.text, session=made.text, choices=made.choices,
                                             max_new_tokens=96)).result(WAIT_S)
                verdicts.append(is_right(answer.text, made.answer))
    part = share(verdicts)
    low, high = part.interval
    for name, value in (('accuracy', part.value), ('low', low), ('high', high),
                        ('n', part.count), ('frames', frames)):
        report.add(f'needle_{name}', value)
    report.target('needle_accuracy', '>=', 0.991)
    for name, values in ((FEW, few), (frames, many)):
        report.add(f'first_token_{name}_frames_ms', median(values) * 1e3)
    report.add('first_token_flatness', median([b / a for a, b in zip(few, many, strict=True)]))
    report.target('first_token_flatness', '<=', 1.2)


def measure_hours(report: Report, model: StepModel, settings: dict, quick: bool) -> None:
    """Bytes of memory and of the process at the end of each simulated hour, as fast as it goes."""
    hours, per_hour = (4, 450) if quick else (8, HOUR_FRAMES)
    seconds = float(hours * per_hour)
    episode = needle_world(TEST_SEEDS[6_000], seconds, needles=48)
    config = EngineConfig.from_flat({**model.settings, **OFFLINE, **settings})
    process = psutil.Process()
    device, rss = [], []
    with Engine(model, config) as engine:
        for count, frame in enumerate(watch(episode, hours * per_hour), start=1):
            engine.feed(frame, WAIT_S)
            if count % per_hour == 0:
                engine.drain(WAIT_S)
                used = engine.memory.tier_bytes
                device.append(used['device'] + used.get('quantized', 0))
                rss.append(process.memory_info().rss)
                hour = count // per_hour
                report.add(f'device_bytes_hour_{hour}', device[-1])
                report.add(f'rss_bytes_hour_{hour}', rss[-1])
    for name, values in (('device_bytes', device), ('rss_bytes', rss)):
        report.add(f'{name}_last_to_first', values[-1] / values[0])
        report.target(f'{name}_last_to_first', '<=', 1.05)


def watch(episode: Episode, frames: int) -> Iterator[Frame]:
    """One frame a second."""
    renderer = Renderer(episode, WORLD_PX)
    for number in tqdm(range(frames), unit='frame', disable=None):
        at_s = 0.3 + number
        yield Frame(round(at_s * NS_PER_S), CAMERA, renderer.frame(at_s))


def questions(cutter: Cutter, rng: random.Random) -> list[TableQuestion]:
    """Different questions about needles, half of them with choices."""
    asker, made = Asker(cutter.chronicle, rng), {}
    for number in range(20 * QUESTIONS):
        question = asker.make(KINDS[number % len(KINDS)])
        if question is not None and question.text not in made:
            made[question.text] = question.with_choices(rng) if rng.random() < 0.5 else question
        if len(made) == QUESTIONS:
            break
    return list(made.values())


def first_token_s(engine: Engine, probe: int) -> float:
    """Of one question, in a session of its own, while nothing else happens."""
    asked = engine.ask(Question(f'Has there ever been a {THINGS[probe].name}?',
                                session=f'probe {probe}', max_new_tokens=2))
    return asked.result(WAIT_S).first_token_s
