"""How speed depends on the size of memory, the number of sessions and the camera's rate.

    scripts/bench scale --quick --json FILE --plot PNG      memory up to 1,000 segments
    scripts/bench scale --segments 10000 --json FILE

For each size of memory an engine really watches so many segments (one patch and a note each).
Then, for each number of sessions and each rate of the camera, all sessions ask at once, while the
camera runs:

    first_token_ms_<m>_segments_<s>_sessions_<f>_fps      median over answers and repeats
    answer_tokens_per_s_…   all sessions together, behind the first token
    ingest_fps_…, dropped_…   frames into memory meanwhile, frames dropped

and the peers of _peers.py with one session: first_token_ms_<m>_segments_<peer>, `interleaved` with
the camera at 10 fps. Where its keys and values would not fit into memory it is left out. There are
no targets here; overlap and decode have them. The plot shows what the JSON holds.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from _camera import WAIT_S, Camera, Film, fill, tabletop
from _models import Loaded, arguments, endless, finish, load
from _peers import PEER_FPS, QUESTION, RECENT, SYNTHETIC, peers_beside, take_quicker_threads
from _report import Report, median

from tww_ros import Engine, Question

SIZES = (10, 100, 1_000, 10_000)
SESSIONS = (1, 2, 4, 8)
RATES_FPS = (0.0, 10.0, 30.0, 60.0)
QUICK_SESSIONS = (1, 8)
QUICK_RATES_FPS = (0.0, 10.0, 60.0)
# So that 60 fps make segments of a size that notes and answers still see.
SEGMENT_S = 0.5
TOKENS = 32
# Of a point, and of a peer.
REPEATS, QUICK_REPEATS = (7, 9), (2, 3)


class Cell(NamedTuple):
    """One point. segments: in memory when it was measured; fps: of the camera."""

    size: int
    sessions: int
    fps: float
    segments: int
    first_token_s: float
    tokens_per_s: float
    ingest_fps: float
    dropped: int

    @property
    def name(self) -> str:
        """As in metrics."""
        return f'{self.size}_segments_{self.sessions}_sessions_{self.fps:g}_fps'


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments('scale', argv, segments=SIZES[-2], plot=True)
    loaded, report, quick = load(options), Report('scale'), options.quick
    film, cells, peers = Film(tabletop(loaded.picture_px)), [], {}
    rng = random.Random(0)
    repeats, peer_repeats = QUICK_REPEATS if quick else REPEATS
    for size in [*(size for size in SIZES if size < options.segments), options.segments]:
        with Engine(loaded.model, loaded.live(RATES_FPS[-1], SEGMENT_S)) as engine:
            fill(engine, film, size, SEGMENT_S)
            peers |= measure_peers(loaded, engine, film, rng, size, peer_repeats)
            # Without a camera first: memory has then the size that it is told to have.
            for fps in QUICK_RATES_FPS if quick else RATES_FPS:
                for sessions in QUICK_SESSIONS if quick else SESSIONS:
                    cells.append(measure_cell(loaded, engine, film, rng, size, sessions, fps,
                                              repeats))
    for cell in cells:
        report.add(f'first_token_ms_{cell.name}', 1e3 * cell.first_token_s)
        report.add(f'answer_tokens_per_s_{cell.name}', cell.tokens_per_s)
        if cell.fps:
            report.add(f'ingest_fps_{cell.name}', cell.ingest_fps)
            report.add(f'dropped_{cell.name}', cell.dropped)
        report.add(f'segments_{cell.name}', cell.segments)
    for (size, name), first_token_s in peers.items():
        report.add(f'first_token_ms_{size}_segments_{name}', 1e3 * first_token_s)
    if options.plot:
        draw(cells, peers, loaded.weights, options.plot)
    return finish(report, options, loaded)


def measure_cell(loaded: Loaded, engine: Engine, film: Film, rng: random.Random, size: int,
                 sessions: int, fps: float, repeats: int) -> Cell:
    """All sessions ask at once, a camera runs; answers of the same length."""
    first_s, rates, ingest = [], [], []
    dropped = engine.stats().frames_dropped
    for number in range(repeats):
        engine.drain(WAIT_S)
        camera = Camera(engine, film, fps) if fps else contextlib.nullcontext()
        with camera, endless(loaded.model):
            time.sleep(0.3 + rng.uniform(0.0, SEGMENT_S) if fps else 0.0)
            before, begin_s = engine.stats().frames_watched, time.monotonic()
            pending = [engine.ask(Question(QUESTION, session=f'{fps} {sessions} {number} {each}',
                                           max_new_tokens=TOKENS)) for each in range(sessions)]
            answers = [each.result(WAIT_S) for each in pending]
            watched, seconds = engine.stats().frames_watched - before, time.monotonic() - begin_s
        first_s += [answer.first_token_s for answer in answers]
        began_s = min(p.asked_s + a.first_token_s for p, a in zip(pending, answers, strict=True))
        ended_s = max(p.asked_s + a.total_s for p, a in zip(pending, answers, strict=True))
        rates.append(sessions * (TOKENS - 1) / (ended_s - began_s))
        ingest.append(watched / seconds)
    return Cell(size, sessions, fps, len(engine.memory), median(first_s), median(rates),
                median(ingest), engine.stats().frames_dropped - dropped)


def measure_peers(loaded: Loaded, engine: Engine, film: Film, rng: random.Random, size: int,
                  repeats: int) -> dict[tuple[int, str], float]:
    """Median first-token times of the peers beside a memory of this size."""
    wanted = (sum(segment.tokens for segment in engine.memory.segments())
              * 2 * loaded.model.block_shape.token_bytes)
    device = loaded.model.device
    free = (torch.cuda.mem_get_info(device)[0] if device.type == 'cuda'
            else psutil.virtual_memory().available)
    if wanted > 0.7 * free:
        print(f'peers at {size} segments: left out, their keys and values would not fit')
        return {}
    pictures, interleaved = peers_beside(engine, loaded.model, film)
    threads = torch.get_num_threads()
    take_quicker_threads(pictures[RECENT])
    found = {}
    for name, peer in pictures.items():
        found[size, name] = median([peer.ask(QUESTION).first_token_s for _ in range(repeats)])
    found[size, SYNTHETIC] = median([
        interleaved.first_token_s(film, QUESTION, 2 / PEER_FPS + rng.uniform(0.0, 2 * SEGMENT_S))
        for _ in range(repeats)])
    torch.set_num_threads(threads)
    return found


def draw(cells: Sequence[Cell], peers: dict[tuple[int, str], float], weights: str,
         file: Path) -> None:
    """Three panels: by memory, by sessions, by rate."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 5), layout='constrained')
    rates = sorted({cell.fps for cell in cells})
    sizes = sorted({cell.size for cell in cells})
    most = max(cell.sessions for cell in cells)
    for fps in rates:
        line = [cell for cell in cells if (cell.sessions, cell.fps) == (1, fps)]
        left.plot([cell.size for cell in line], [1e3 * cell.first_token_s for cell in line],
                  marker='o', label=f'ours, camera at {fps:g} fps')
    for name in sorted({name for _, name in peers}):
        line = [(size, 1e3 * peers[size, name]) for size in sizes if (size, name) in peers]
        left.plot(*zip(*line, strict=True), marker='x', linestyle='--',
                  label=name.replace('_', ' '))
    left.set(xscale='log', yscale='log', xlabel='segments in memory', ylabel='first token, ms',
             title='one session')
    left.set_xticks(sizes, [f'{size:,}' for size in sizes])
    left.minorticks_off()
    for size in sizes:
        line = [cell for cell in cells if (cell.size, cell.fps) == (size, 0.0)]
        middle.plot([cell.sessions for cell in line], [cell.tokens_per_s for cell in line],
                    marker='o', label=f'{size:,} segments')
    middle.set(xlabel='sessions', ylabel='answer tokens/s, all together', title='no camera',
               xlim=(0, most + 0.5), ylim=(0, None))
    for sessions in sorted({cell.sessions for cell in cells}):
        line = [cell for cell in cells if (cell.size, cell.sessions) == (sizes[-1], sessions)]
        right.plot([cell.fps for cell in line], [cell.ingest_fps for cell in line], marker='o',
                   label=f'{sessions} session{"s" * (sessions > 1)} answered')
    right.plot((0, rates[-1]), (0, rates[-1]), color='grey', linestyle=':', label='all frames')
    right.set(xlabel='camera, fps', ylabel='frames/s into memory', ylim=(0, None),
              title=f'while answering, {sizes[-1]:,} segments')
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        # Below: on the lines it would hide some.
        axis.legend(fontsize='small', loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.suptitle(f'weights: {weights}')
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
