"""Watching and thinking at once: first tokens, ingest and drops while a camera runs, and peers.

    scripts/bench overlap --quick --json FILE                    some four minutes on two cores
    scripts/bench overlap --parts drops --json FILE              one part of it
    scripts/bench overlap --model qwen3vl-2b-random --quantization nf4 --json FILE

One engine really watches 1,000 segments (two pictures and a note each), then in one process, in
turn, over repeats:

    overlap_cost_first_token    first-token time while ingesting 10 fps ÷ idle, pair by pair
    <peer>_to_ours_first_token  the peer's ÷ ours, both while the same camera runs (_peers.py);
                                same weights, pictures, question
    ingest_gap_to_chunk         frames always wait: longest time between two patches entering
                                memory while 256 tokens are written ÷ the median of such times
                                before the question, repeat by repeat
    ingest_fps_while_answering  frames into memory in those times
    drops                       at 10 fps with a question every 5 s, for 10 minutes (--quick: 1)

first-token time: question accepted → first answer token. What is read while frames always wait is
one patch a segment, so that the engine itself tells when a patch has entered memory.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from _camera import WAIT_S, Camera, Film, fill, tabletop
from _models import Loaded, arguments, endless, finish, load
from _peers import PEER_FPS as FPS
from _peers import (
    QUESTION,
    QUESTION_FIRST,
    SYNTHETIC,
    peers_beside,
    take_quicker_threads,
)
from _report import Report, median, percentile

from tww_ros import Engine, Question
from tww_ros.types import Answer

# Two frames that are a second apart, as the embedded model was trained.
SEGMENT_S = 4 / 3
SEGMENTS = 1_000
PARTS = ('first', 'gaps', 'drops')
SHORT_TOKENS, LONG_TOKENS = 16, 256
QUESTION_EVERY_S = 5.0
# Before a measurement with a camera: until its frames are under way.
SETTLE_S = 0.5
# Rounds of first tokens, long answers, seconds of a camera.
REPEATS, QUICK_REPEATS = (25, 9, 600.0), (7, 3, 60.0)
_numbers = itertools.count()


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments('overlap', argv, segments=SEGMENTS, parts=PARTS)
    loaded, report = load(options), Report('overlap')
    # As a node does: the collector would hold all threads up while it goes through the model.
    gc.collect()
    gc.freeze()
    rounds, answers, seconds = QUICK_REPEATS if options.quick else REPEATS
    rng, film = random.Random(0), Film(tabletop(loaded.picture_px))
    closed_s: list[float] = []
    with Engine(loaded.model, loaded.live(FPS, SEGMENT_S),
                on_segment=lambda _: closed_s.append(time.monotonic())) as engine:
        started_s = time.monotonic()
        fill(engine, film, options.segments, SEGMENT_S)
        report.add('segments', len(engine.memory))
        report.add('segments_per_s_filled', options.segments / (time.monotonic() - started_s))
        if 'first' in options.parts:
            measure_first_tokens(report, loaded, engine, film, rng, rounds)
        if 'gaps' in options.parts:
            with endless(loaded.model):
                measure_gaps(report, engine, film, closed_s, answers)
        if 'drops' in options.parts:
            measure_drops(report, engine, film, seconds)
    loaded.target(report, 'overlap_cost_first_token', '<=', 1.3, 1.15)
    if options.segments >= SEGMENTS:
        loaded.target(report, f'{SYNTHETIC}_to_ours_first_token', '>=', 5.0, 10.0)
    loaded.target(report, 'ingest_gap_to_chunk', '<=', 2.0, 2.0)
    loaded.target(report, 'drops', '==', 0, 0)
    loaded.target(report, 'ingest_fps_while_answering', '>=', None, 60.0)
    return finish(report, options, loaded)


def ask(engine: Engine, tokens: int = SHORT_TOKENS) -> Answer:
    """One question of its own session, and the whole answer."""
    return engine.ask(question(tokens)).result(WAIT_S)


def question(tokens: int) -> Question:
    """The same words each time, in a session of its own."""
    return Question(QUESTION, session=f'overlap {next(_numbers)}', max_new_tokens=tokens)


def measure_first_tokens(report: Report, loaded: Loaded, engine: Engine, film: Film,
                         rng: random.Random, repeats: int) -> None:
    """Idle, ingesting and every peer in turn; the question comes at a random moment."""
    pictures, interleaved = peers_beside(engine, loaded.model, film)
    report.add('tokens_in_interleaved', interleaved.stream.block.length)
    stream = SimpleNamespace(ask=functools.partial(interleaved.stream.ask, max_new_tokens=1))
    threads = {name: take_quicker_threads(peer)
               for name, peer in {**pictures, SYNTHETIC: stream}.items()}
    threads[QUESTION_FIRST] = threads[SYNTHETIC]
    for name, count in threads.items():
        report.add(f'threads_{name}', count)
    seconds: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for number in range(repeats + 1):
        if number == 1:
            # The first round warmed everything up.
            seconds.clear()
            rates.clear()
        engine.drain(WAIT_S)
        after_s = SETTLE_S + rng.uniform(0.0, SEGMENT_S)
        # The machine forgets as much in the meantime as it does with a camera.
        time.sleep(after_s)
        answers = {'idle': ask(engine)}
        with Camera(engine, film, FPS):
            time.sleep(after_s)
            answers['ingesting'] = ask(engine)
        engine.drain(WAIT_S)
        for state, answer in answers.items():
            seconds[state].append(answer.first_token_s)
            rates[state].append((answer.completion_tokens - 1)
                                / max(1e-9, answer.total_s - answer.first_token_s))
        for name, first in ((SYNTHETIC, False), (QUESTION_FIRST, True)):
            torch.set_num_threads(threads[name])
            seconds[name].append(interleaved.first_token_s(film, QUESTION, after_s, first))
        for name, peer in pictures.items():
            torch.set_num_threads(threads[name])
            seconds[name].append(peer.ask(QUESTION).first_token_s)
    for name, values in seconds.items():
        report.add(f'first_token_ms_{name}', 1e3 * median(values))
    for state, values in rates.items():
        report.add(f'answer_tokens_per_s_{state}', median(values))
    report.add('memory_tokens_attended', answers['idle'].reused_tokens)
    report.add('overlap_cost_first_token', ratio(seconds['ingesting'], seconds['idle']))
    for name in (SYNTHETIC, QUESTION_FIRST, *pictures):
        report.add(f'{name}_to_ours_first_token', ratio(seconds[name], seconds['ingesting']))


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios, repeat by repeat."""
    return median([a / b for a, b in zip(over, under, strict=True)])


def measure_gaps(report: Report, engine: Engine, film: Film, closed_s: list[float],
                 repeats: int) -> None:
    """Frames always wait; times between patches before and during a long answer."""
    ratios, chunks, longest, rates, tokens = [], [], [], [], []
    for _ in range(repeats):
        engine.drain(WAIT_S)
        with Camera(engine, film, math.inf, 0.75 * SEGMENT_S):
            time.sleep(SETTLE_S)
            quiet = time.monotonic(), time.monotonic() + 4 * SETTLE_S
            time.sleep(4 * SETTLE_S)
            pending = engine.ask(question(LONG_TOKENS))
            answer = pending.result(WAIT_S)
            # So that the gap that the answer's end falls into is seen whole.
            time.sleep(SETTLE_S)
        busy = pending.asked_s + answer.first_token_s, pending.asked_s + answer.total_s
        chunks.append(median(gaps(closed_s, *quiet)))
        longest.append(max(gaps(closed_s, *busy)))
        ratios.append(longest[-1] / chunks[-1])
        inside = sum(busy[0] <= at_s < busy[1] for at_s in closed_s)
        rates.append(2 * inside / (busy[1] - busy[0]))
        tokens.append(answer.completion_tokens)
    report.add('ingest_gap_to_chunk', median(ratios))
    report.add('ingest_chunk_ms', 1e3 * median(chunks))
    report.add('ingest_gap_longest_ms', 1e3 * median(longest))
    report.add('ingest_fps_while_answering', median(rates))
    report.add('ingest_fps_without_answer', 2 / median(chunks))
    report.add('long_answer_tokens', min(tokens))


def gaps(times_s: Sequence[float], begin_s: float, end_s: float) -> list[float]:
    """Times between neighbours, of all that lie in begin_s to end_s at least partly."""
    return [after - before for before, after in itertools.pairwise(times_s)
            if after > begin_s and before < end_s]


def measure_drops(report: Report, engine: Engine, film: Film, seconds: float) -> None:
    """A camera for a long time, questions all along; every frame must enter memory."""
    engine.drain(WAIT_S)
    before, pending = engine.stats(), []
    with Camera(engine, film, FPS):
        start_s = time.monotonic()
        for number in range(1, int(seconds / QUESTION_EVERY_S) + 1):
            due_s = start_s + number * QUESTION_EVERY_S
            time.sleep(max(0.0, due_s - time.monotonic()))
            pending.append(engine.ask(question(4 * SHORT_TOKENS)))
        answers = [each.result(WAIT_S) for each in pending]
    engine.drain(WAIT_S)
    after = engine.stats()
    for name in ('frames_received', 'frames_rejected', 'notes_written', 'notes_skipped'):
        report.add(f'drops_{name}', getattr(after, name) - getattr(before, name))
    report.add('drops', after.frames_dropped - before.frames_dropped)
    report.add('drops_seconds', seconds)
    first = [answer.first_token_s for answer in answers]
    report.add('drops_first_token_ms_p50', 1e3 * median(first))
    report.add('drops_first_token_ms_p90', 1e3 * percentile(first, 0.9))
