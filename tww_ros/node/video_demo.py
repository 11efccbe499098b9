"""`tww demo --video FILE`: a real video, a node that watches it, three questions meanwhile.

In: a video, a model name. Out: what happens, line by line, as it happens, and a contact sheet of
what was watched. Three processes talk over real DDS on this machine only: the node, the replay of
a bag made from the video, and this one, which asks over the service `~/ask` while frames keep
arriving. Nothing is staged: whatever the node answers is shown, and the exit code says whether
frames really went on entering memory meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tww_ros.errors import ReplayError, TwwError
from tww_ros.node.client import TwwClient
from tww_ros.node.conversions import from_time
from tww_ros.node.demo_processes import (
    NODE_START_S,
    last_words,
    one_line,
    printable,
    process,
    program,
    wait_until_ready,
)
from tww_ros.node.domain import own_domain
from tww_ros.replay.bag import DEFAULT_START_NS, write_bag_from_video
from tww_ros.replay.sheet import Strip, contact_sheet
from tww_ros.replay.video import read_video
from tww_ros.types import NS_PER_S, Answer, Frame, Note, SegmentInfo

SAMPLE = 'bikes.mp4'
FPS = 10.0
QUESTIONS = (
    ('What is moving in the picture?', ()),
    ('Is a bicycle in view?', ('yes', 'no')),
    ('What did you see first?', ()),
)


@dataclass(frozen=True)
class VideoDemoOptions:
    """video: None takes the sample; sheet: where the picture of what was watched goes."""

    video: Path | None = None
    model: str = 'tiny-random'
    quantization: str = 'none'
    seconds: float = 12.0
    sheet: Path = Path('tww_demo.png')


def run_video_demo(options: VideoDemoOptions) -> int:
    """Run it; 0 when all questions were answered and frames entered memory during each answer."""
    with own_domain() as variables:
        os.environ.update(variables)
        return _run(options)


def _run(options: VideoDemoOptions) -> int:
    video = options.video or _sample_video()
    console = Console(highlight=False, soft_wrap=True)
    console.rule('[bold]tww_ros demo')
    if options.model == 'tiny-random':
        console.print(
            '[yellow]The model is tiny-random: real Qwen3-VL classes with random weights. Its '
            'words mean nothing;\nwhat is real is everything else: frames, memory, timing, '
            'evidence. '
            'Use --model DIR for answers.[/]'
        )
    with tempfile.TemporaryDirectory(prefix='tww_demo_') as folder:
        bag = Path(folder) / 'bag'
        info = write_bag_from_video(
            video, bag, fps=FPS, max_seconds=options.seconds, progress=sys.stderr.isatty()
        )
        console.print(
            f'bag     {info.messages} images, {info.duration_s:.1f} s of {video.name}, '
            f'{info.size_bytes / 1e6:.0f} MB'
        )
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(Path(folder) / 'processes.log', 'w+'))
            node = stack.enter_context(process(_node_command(options), log))
            client = stack.enter_context(TwwClient())
            try:
                show = _Show(console, client, info.start_ns)
                status = wait_until_ready(client, node)
                console.print(f'node    process {node.pid}: {status.description}')
                replay = stack.enter_context(
                    process([sys.executable, '-m', 'tww_ros.cli', 'replay', str(bag)], log)
                )
                console.print(
                    f'replay  process {replay.pid}: real time, over DDS, domain '
                    f'{os.environ["ROS_DOMAIN_ID"]}\n'
                )
                good = show.ask_all(info.duration_s)
                show.wait_for_end(replay, info)
            except TwwError:
                console.print(f'[red]{last_words(log)}[/]')
                raise
            good &= show.summary(info.messages)
        _draw(options.sheet, video, options.seconds, show.seen, show.answers)
        console.print(f'picture {options.sheet}: what was watched, with the notes')
    return 0 if good else 1


class _Show:
    """Asks, and prints what happens."""

    def __init__(self, console: Console, client: TwwClient, start_ns: int) -> None:
        self._console = console
        self._client = client
        self._start_ns = start_ns
        self._noted = 0
        self.seen: list[SegmentInfo] = []
        self.answers: list[Answer] = []

    def ask_all(self, duration_s: float) -> bool:
        """Ask at a quarter, a half and three quarters of the stream."""
        good = True
        for number, (text, choices) in enumerate(QUESTIONS, start=1):
            self._watch_until(duration_s * number / (len(QUESTIONS) + 1))
            good &= self._ask(text, choices)
        return good

    def wait_for_end(self, replay: subprocess.Popen, info) -> None:
        """Let the replay end and the last notes be written."""
        end_s = time.monotonic() + info.duration_s + 30
        while replay.poll() is None and time.monotonic() < end_s:
            time.sleep(0.1)
            self._print_notes()
        if replay.poll() != 0:
            raise ReplayError(f'the replay did not end well (exit code {replay.poll()})')
        # The last segment is closed when its camera has been silent for watch.idle_close_s.
        self._client.wait_for(
            lambda s: s.frames_waiting == 0 and s.notes_written + s.notes_skipped == s.segments, 30
        )
        self._print_notes()
        self.seen = self._client.segments()

    def summary(self, sent: int) -> bool:
        """Print the counters; False when a frame was lost on the way."""
        status = self._client.status()
        self._console.print(
            f'\nframes  {sent} published, {status.frames_received} received, '
            f'{status.frames_watched} in memory, {status.frames_skipped} skipped by the sampler, '
            f'{status.frames_dropped} dropped'
        )
        self._console.print(
            f'memory  {status.segments} segments, {status.notes_written} notes, '
            f'{status.memory_tokens} tokens, {status.memory_bytes / 1e6:.1f} MB of keys and '
            f'values; {status.steps} steps'
        )
        return status.frames_dropped == 0 and status.frames_received == sent

    def _watch_until(self, seconds: float) -> None:
        """Until the newest frame in memory is `seconds` into the stream; shows notes meanwhile."""
        target_ns = self._start_ns + round(seconds * NS_PER_S)
        end_s = time.monotonic() + seconds + NODE_START_S
        while from_time(self._client.status().newest) < target_ns:
            if time.monotonic() > end_s:
                raise ReplayError(
                    f'no frame later than {seconds:.1f} s entered memory; see the log above'
                )
            time.sleep(0.05)
            self._print_notes()
        status = self._client.status()
        self._console.print(
            f'{self._at(from_time(status.newest))} [dim]watched[/] '
            f'{status.frames_watched} frames in {status.segments} segments, '
            f'{status.ingest_lag.nanosec / 1e6:.0f} ms from camera to '
            'memory'
        )

    def _ask(self, text: str, choices: tuple[str, ...]) -> bool:
        before = self._client.status()
        self._console.print(
            f'{self._at(from_time(before.newest))} [bold cyan]asked[/]   {text}'
            + (f' ({" / ".join(choices)})' if choices else '')
        )
        answer = self._client.ask(
            text, session='demo', choices=choices, timeout_s=60, max_new_tokens=200
        )
        after = self._client.wait_for(
            lambda s: (
                from_time(s.stamp) > from_time(before.stamp)
                and s.answers_done > before.answers_done
            ),
            10,
        )
        grown = after.frames_watched - before.frames_watched
        words = printable(answer.text)
        chosen = ''
        if choices:
            chosen = '  ' + ', '.join(
                f'{choice} {p:.0%}'
                for choice, p in zip(choices, answer.choice_probabilities, strict=True)
            )
        self._console.print(
            f'{self._at(answer.as_of_ns)} [bold green]answer[/]  {words}{chosen}', markup=True
        )
        self._console.print(
            f'         [dim]first token {answer.first_token_s * 1e3:.0f} ms, '
            f'{answer.completion_tokens} tokens in {answer.total_s:.2f} s, '
            f'{answer.reused_tokens} memory tokens reused, as of '
            f'{self._seconds(answer.as_of_ns):.1f} s; {grown} more frames in memory meanwhile[/]'
        )
        for evidence in answer.evidence[:3]:
            self._console.print(
                f'         [dim]evidence: segment {evidence.segment_id}, '
                f'{self._seconds(evidence.start_ns):.1f} to {self._seconds(evidence.end_ns):.1f} '
                f's, {evidence.score:.0%} of the attention[/]'
            )
        self._print_notes()
        self.answers.append(answer)
        # An answer of a choice is over within one step or two; no frame need arrive in that time.
        return bool(answer.evidence) and (grown > 0 or bool(choices) or answer.total_s < 2 / FPS)

    def _print_notes(self) -> None:
        notes: list[Note] = self._client.notes()
        for note in notes[self._noted :]:
            self._console.print(
                f'{self._at(note.end_ns)} [magenta]note[/]    segment {note.segment_id} '
                f'({self._seconds(note.start_ns):.1f} to {self._seconds(note.end_ns):.1f} s): '
                f'{printable(note.text)}',
                markup=True,
            )
        self._noted = len(notes)

    def _seconds(self, stamp_ns: int) -> float:
        return (stamp_ns - self._start_ns) / NS_PER_S

    def _at(self, stamp_ns: int) -> str:
        return f'[{self._seconds(stamp_ns):5.1f} s]'.replace('[', r'\[')


def _node_command(options: VideoDemoOptions) -> list[str]:
    parameters = {
        'model': options.model,
        'quantization': options.quantization,
        'watch.segment_s': 2.0,
        'watch.sample_fps': FPS,
        'image_reliability': 'reliable',
        'watch.max_pixels': 50_176,
    }
    return program('main', parameters)


def _sample_video() -> Path:
    folder = os.environ.get('TWW_SAMPLE_VIDEOS', '')
    path = Path(folder) / SAMPLE
    if not folder or not path.is_file():
        raise ReplayError(
            'the sample video is not there (TWW_SAMPLE_VIDEOS is set by scripts/run after '
            'scripts/setup could download it); give one with --video FILE'
        )
    return path


def _draw(
    path: Path, video: Path, seconds: float, segments: list[SegmentInfo], answers: list[Answer]
) -> None:
    """One strip per segment in memory: some frames, its note, its share of attention."""
    frames: list[Frame] = list(
        read_video(video, fps=4.0, end_s=seconds, start_ns=DEFAULT_START_NS)
    )
    strips = []
    for segment in segments:
        inside = [f for f in frames if segment.start_ns <= f.stamp_ns <= segment.end_ns]
        shares = [
            f'answer {number}: {e.score:.0%}'
            for number, answer in enumerate(answers, start=1)
            for e in answer.evidence
            if e.segment_id == segment.id
        ]
        caption = (
            f'segment {segment.id}, closed by {segment.closed_by}, {segment.frames} frames, '
            f'{segment.tokens} tokens   attention of {", ".join(shares) or "no answer"}'
        )
        if inside:
            strips.append(Strip(caption, inside, f'note: {one_line(segment.note)}'))
    contact_sheet(strips, title=f'{video.name}: what was watched').save(path)
