"""`tww demo`: a simulated camera above a table, a node that watches it, questions meanwhile.

In: a world's seed, how long. Out: what happens, line by line, as it happens, the score so far, and
a picture with a row per question. Three processes talk over real DDS on this machine only:

    tabletop_camera ── image, 10 Hz ──▶ tww_node, model `embedded` ◀── ~/ask ── this process
           └────────── ~/truth ─────────────────────────────────────────────────────▶┘

Every `EVERY_S` seconds two or three questions are asked in one session, while the camera goes on.
They are made by `world.questions` from what could be seen until then, and marked with the exact
answer (`answer_key`). That answer stays in this process: the node gets pictures and the words of
the question, nothing else. Nothing is staged: the world is drawn at random among those that nobody
trains on (only one without a long idle stretch is taken), and wrong answers are shown as wrong. A
question whose answer changed while it was on its way is shown, and not judged.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tww_interfaces.msg import MemoryStatus
from tww_ros.config import EngineConfig
from tww_ros.errors import ReplayError, TwwError
from tww_ros.model.marks import local_marks
from tww_ros.node.answer_key import AnswerKey, same_knowledge
from tww_ros.node.camera_client import CameraClient
from tww_ros.node.client import TwwClient
from tww_ros.node.demo_processes import (
    last_words,
    printable,
    process,
    program,
    wait_until_ready,
)
from tww_ros.node.demo_report import (
    PROOFS,
    Asked,
    DemoReport,
    score,
    told_chances,
    told_share,
    told_times,
)
from tww_ros.node.demo_sheet import RIGHT, WRONG
from tww_ros.node.domain import own_domain
from tww_ros.types import NS_PER_S, SegmentInfo
from tww_ros.world.known import TableQuestion
from tww_ros.world.notes import NOTHING_NEW, Chronicle
from tww_ros.world.questions import KINDS_OF, Asker
from tww_ros.world.table import TEST_SEEDS, Episode, Pace, simulate

MODEL = 'embedded'
SESSION = 'demo'
RATE_HZ, SIZE_PX, GAP_S = 10.0, 384, 2.0
# Seconds of the world: the first questions, how often then, none that shortly before the end.
FIRST_S, EVERY_S, LAST_S = 8.0, 8.0, 3.0
# A world drawn at random has no longer rest.
LONGEST_REST_S = 9.0
CHOICE_SHARE, FOLLOW_UP_SHARE, TRIES = 0.5, 0.7, 20
# How long ago the newest watched frame was published when a question is asked: it is in memory by
# then, and the next one is not.
FRESH_S = (0.15, 0.75)
STATUS_HZ, POLL_S = 20.0, 0.03
ANSWER_S, ANSWER_TOKENS = 60.0, 128
# Longest waits: for a moment at rest, for a truth to arrive, for the last notes, for the camera to
# end after its time.
REST_S, TRUTH_S, NOTES_S, END_S = 20.0, 5.0, 20.0, 60.0


@dataclass(frozen=True)
class DemoOptions:
    """seed: of the world, None draws one; seconds: of the world; sheet: where the picture goes."""

    seed: int | None = None
    seconds: float = 60.0
    quantization: str = 'none'
    sheet: Path = Path('tww_demo.png')


def run_demo(options: DemoOptions) -> int:
    """Run it; 0 when all were answered, at least half right, and watching never stopped."""
    with own_domain() as variables:
        os.environ.update(variables)
        report = show(options, Console(highlight=False, soft_wrap=True))
    return 1 if report.faults else 0


def show(options: DemoOptions, console: Console) -> DemoReport:
    """The demo in the ROS domain of this process.

    Raises TwwError when a process does not start, ends early or says nothing for too long.
    """
    if options.seconds < FIRST_S + LAST_S:
        raise ReplayError(f'expected at least {FIRST_S + LAST_S:g} seconds, got '
                          f'{options.seconds:g}: the first questions come after {FIRST_S:g} s')
    if not options.sheet.absolute().parent.is_dir():
        raise ReplayError(f'there is no folder {options.sheet.absolute().parent} for the picture')
    episode = _world(options)
    watch = EngineConfig.from_flat(local_marks(MODEL).settings).watch
    key = AnswerKey(episode, watch.sample_fps)
    console.rule('[bold]tww_ros: questions about a table while it is being watched')
    with tempfile.TemporaryDirectory(prefix='tww_demo_') as folder, \
            contextlib.ExitStack() as stack:
        log = stack.enter_context(open(Path(folder, 'processes.log'), 'w+'))
        try:
            client = stack.enter_context(TwwClient())
            camera_client = stack.enter_context(CameraClient())
            node = stack.enter_context(process(_node_command(options), log))
            camera = stack.enter_context(process(_camera_command(options, episode.seed), log))
            status = wait_until_ready(client, node)
            _introduce(console, options, episode, node, camera, status)
            table = _Table(console, client, camera_client, key, options.seconds)
            camera_client.set_running(True)
            table.watch(camera)
            report = table.report()
        except TwwError:
            console.print(f'[red]{last_words(log)}[/]')
            raise
    for what, numbers in report.summary:
        console.print(f'[bold]{what:<10}[/]{numbers}')
    report.sheet().save(options.sheet)
    console.print(f'[bold]{"picture":<10}[/]{options.sheet}: every question with its evidence')
    for fault in report.faults:
        console.print(f'[bold red]failed    [/]{fault}')
    return report


class _Table:
    """Watches the world's time, asks, and prints what happens."""

    def __init__(self, console: Console, client: TwwClient, camera: CameraClient, key: AnswerKey,
                 seconds: float) -> None:
        self._console = console
        self._client = client
        self._camera = camera
        self._key = key
        self._lasts_s = seconds
        self._rng = random.Random(f'demo {key.episode.seed}')
        self._noted = 0
        self._first_ns = 0
        self._arrived = 0
        self._asked: list[Asked] = []

    def watch(self, camera: subprocess.Popen) -> None:
        """Until the camera ends; questions at their times."""
        end_s, round_s = time.monotonic() + self._lasts_s + END_S, FIRST_S
        while camera.poll() is None:
            if time.monotonic() > end_s:
                raise ReplayError(f'the camera did not end after {self._lasts_s:g} s')
            self._follow()
            if self._now_s() >= round_s and round_s <= self._lasts_s - LAST_S:
                self._round()
                round_s += EVERY_S
            time.sleep(POLL_S)
        if camera.returncode != 0:
            raise ReplayError(f'the camera ended with exit code {camera.returncode}')

    def report(self) -> DemoReport:
        """All of it, when the last notes are written."""
        # The last segment is closed when its camera has been silent for watch.idle_close_s.
        self._wait(lambda: _at_rest(self._client.status(), self._key.frames), NOTES_S)
        self._follow()
        segments = self._segments()
        if not segments:
            raise ReplayError(f'the node has watched none of {self._key.frames} frames')
        return DemoReport(tuple(self._asked), segments, self._key, self._client.status(),
                          self._arrived, RATE_HZ, SIZE_PX)

    # the stream

    def _follow(self) -> None:
        """Hear what has come since the last time; print new notes."""
        for truth in self._camera.truths():
            self._key.publish(truth['stamp_ns'], truth['t_s'])
        notes = self._client.notes()
        for note in notes[self._noted:]:
            self._first_ns = notes[0].start_ns
            told = printable(note.text, 100)
            style = 'dim' if note.text == NOTHING_NEW else 'default'
            self._say(note.end_ns, 'note', 'magenta', f'[{style}]{told}[/]')
        self._noted = len(notes)

    def _segments(self) -> list[SegmentInfo]:
        """The node's segments, all of whose frames are known here."""
        segments = self._client.segments()
        if segments:
            self._first_ns = segments[0].start_ns
            self._wait(lambda: self._key.newest_ns >= segments[-1].end_ns, TRUTH_S)
        return segments

    def _now_s(self) -> float:
        return self._key.world_s(self._key.newest_ns) if self._key.frames else 0.0

    def _wait(self, done: Callable[[], Any], timeout_s: float) -> Any:
        """What done() returns once it is true; its last value when the time is up."""
        end_s = time.monotonic() + timeout_s
        while not (value := done()) and time.monotonic() < end_s:
            time.sleep(POLL_S)
            self._follow()
        return value

    # the questions

    def _round(self) -> None:
        """Two or three questions; how many frames came in meanwhile."""
        before, answered = self._client.status(), 0
        kinds = [KINDS_OF['present'], KINDS_OF['backward'], ()]
        for these in kinds[:self._rng.choice((2, 3))]:
            chronicle = self._wait(self._moment, REST_S)
            if chronicle is None:
                break
            self._ask(chronicle, these)
            answered += self._asked[-1].answer is not None
        after = self._client.wait_for(
            lambda s: s.answers_done >= before.answers_done + answered, ANSWER_S)
        self._arrived += after.frames_received - before.frames_received
        right, judged = score(self._asked)
        self._console.print(f'           [bold]score   {right} of {judged} right so far[/]\n')

    def _moment(self) -> Chronicle | None:
        """What can be known now, when no hand is at work and the newest frame is in memory."""
        self._follow()
        segments = self._segments()
        if not segments:
            return None
        newest_ns = self._key.newest_ns
        watched_ns = self._key.watched_ns(segments[0].start_ns)[-1]
        chronicle = self._key.chronicle(segments, watched_ns)
        fresh = FRESH_S[0] <= (newest_ns - watched_ns) / NS_PER_S <= FRESH_S[1]
        return chronicle if fresh and chronicle.settled else None

    def _ask(self, chronicle: Chronicle, kinds: tuple[str, ...]) -> None:
        question = self._question(chronicle, kinds)
        choices = f'  ({" / ".join(question.choices)})' if question.choices else ''
        self._say(self._key.newest_ns, 'asked', 'bold cyan',
                  f'[bold]{question.text}[/]{printable(choices, 200)}')
        try:
            answer = self._client.ask(question.text, session=SESSION, choices=question.choices,
                                      timeout_s=ANSWER_S, max_new_tokens=ANSWER_TOKENS)
        except TwwError as error:
            asked = Asked(question, None, error=str(error))
        else:
            later = self._key.chronicle(self._segments(), answer.as_of_ns)
            asked = Asked(question, answer, same_knowledge(chronicle, later))
        self._asked.append(asked)
        self._print(asked)

    def _question(self, chronicle: Chronicle, kinds: tuple[str, ...]) -> TableQuestion:
        """One that has not been asked lately; without kinds, any, or one about 'it'."""
        rng, asker = self._rng, Asker(chronicle, self._rng)
        before = self._asked[-1].question if self._asked else None
        if not kinds and before and before.subject and rng.random() < FOLLOW_UP_SHARE:
            made = asker.follow_up(before.subject)
        else:
            recent = {asked.question.text for asked in self._asked[-6:]}
            for _ in range(TRIES):
                made = asker.ask(kinds)
                if made.text not in recent:
                    break
        return made.with_choices(rng) if rng.random() < CHOICE_SHARE else made

    # the words

    def _print(self, asked: Asked) -> None:
        answer, newest_ns = asked.answer, self._key.newest_ns
        if answer is None:
            self._say(newest_ns, 'failed', 'bold red', printable(asked.error, 200))
            return
        mark, style = {RIGHT: ('✓', 'bold green'), WRONG: ('✗', 'bold red')}.get(
            asked.verdict, ('?', 'yellow'))
        changed = '' if asked.judged else ' [yellow](the table changed meanwhile: not judged)[/]'
        self._say(newest_ns, 'answer', 'bold', f'[{style}]{mark} {printable(answer.text)}[/]   '
                                               f'truth: {asked.question.answer}{changed}')
        details = [f'as of {self._seconds(answer.as_of_ns):.1f} s, {told_times(answer)}']
        if answer.reasoning:
            details.insert(0, f'because: {answer.reasoning}')
        if chances := told_chances(asked):
            details.insert(0, chances)
        details += [f'attention: {told_share(evidence, self._first_ns)}, '
                    f'{evidence.note or "its note is not written yet"}'
                    for evidence in answer.evidence[:PROOFS]]
        for detail in details:
            self._console.print(f'                   [dim]{printable(detail, 110)}[/]')

    def _say(self, stamp_ns: int, what: str, style: str, text: str) -> None:
        self._console.print(
            f'\\[{self._seconds(stamp_ns):5.1f} s]  [{style}]{what:<8}[/]{text}')

    def _seconds(self, stamp_ns: int) -> float:
        """As the timestamps that the model reads: since the first frame."""
        return (stamp_ns - self._first_ns) / NS_PER_S


def _at_rest(status: MemoryStatus, frames: int) -> bool:
    """Whether all frames that were published are in memory, and all segments have their notes."""
    return (status.frames_received >= frames and status.frames_waiting == 0
            and status.notes_written + status.notes_skipped == status.segments)


def _world(options: DemoOptions) -> Episode:
    """The world of that seed, or a random one in which something happens all the time."""
    while True:
        seed = random.choice(TEST_SEEDS) if options.seed is None else options.seed
        if seed not in TEST_SEEDS:
            raise ReplayError(f'expected a seed from {TEST_SEEDS.start} to {TEST_SEEDS.stop - 1}, '
                              f'worlds that nobody trains on, got {seed}')
        episode = simulate(seed, options.seconds + END_S, Pace(gap_s=GAP_S))
        busy = [0.0, *(event.end_s for event in episode.events)]
        rests_s = [event.start_s - end_s
                   for event, end_s in zip(episode.events, busy, strict=False)
                   if end_s < options.seconds]
        if options.seed is not None or max(rests_s) <= LONGEST_REST_S:
            return episode


def _node_command(options: DemoOptions) -> list[str]:
    return program('main', {
        'model': MODEL, 'quantization': options.quantization, 'image_reliability': 'reliable',
        'status_rate_hz': STATUS_HZ})


def _camera_command(options: DemoOptions, seed: int) -> list[str]:
    return program('tabletop_camera', {
        'seed': seed, 'rate_hz': RATE_HZ, 'size_px': SIZE_PX, 'pace.gap_s': GAP_S,
        'duration_s': float(options.seconds), 'start_paused': True, 'wait_for_subscriber': False,
        'qos_overrides./image.publisher.reliability': 'reliable'})


def _introduce(console: Console, options: DemoOptions, episode: Episode, node: subprocess.Popen,
               camera: subprocess.Popen, status: MemoryStatus) -> None:
    console.print(f'world    {episode.seed}: {options.seconds:g} s of a table that no model was '
                  f'trained on (--seed {episode.seed} shows it again)')
    console.print(f'camera   process {camera.pid}: {SIZE_PX}×{SIZE_PX} px, {RATE_HZ:g} frames a '
                  f'second, over DDS, domain {os.environ.get("ROS_DOMAIN_ID", "0")}')
    console.print(f'node     process {node.pid}: {status.description}')
    console.print('key      the right answers come from the world and stay in this process\n')
