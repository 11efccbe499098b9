"""What `tww ask` does once its arguments are read: load, watch, ask, print.

In: `AskOptions`. Out: words for people, or one JSON object, which apart from its `seconds` is the
same on every run with `step.deterministic`. Not part of the Python API: programs use `Engine`, or
`replay.questions.ask_video`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tww_ros.config import EngineConfig, WatchConfig
from tww_ros.errors import ReplayError
from tww_ros.replay.questions import TimedAnswer, ask_video, check_times, pair_questions
from tww_ros.replay.sheet import Strip, contact_sheet
from tww_ros.replay.video import VideoInfo, video_info
from tww_ros.types import NS_PER_S, Frame, Note, SegmentInfo
from tww_ros.video.segmentation import FrameIntake, PatchReady

CAMERA = 'video'
TINY_WARNING = ('tiny-random has random weights: its words mean nothing. It shows that watching, '
                'memory and asking work; for real answers pass --model.')
_THUMBNAIL_PX = 320


@dataclass(frozen=True)
class AskOptions:
    """model: arguments of load_model; times_s: empty = at the end."""

    video: Path
    texts: list[str]
    times_s: list[float]
    config: EngineConfig
    model: dict[str, str]
    choices: tuple[str, ...] = ()
    session: str = 'default'
    max_new_tokens: int = 64
    timeout_s: float = 600.0
    as_json: bool = False
    sheet: Path | None = None


def ask_and_print(options: AskOptions) -> int:
    """Returns the exit code."""
    # Before the model is loaded, which can take minutes, what can be refused is refused.
    questions = pair_questions(options.texts, options.times_s, choices=options.choices,
                               session=options.session, max_new_tokens=options.max_new_tokens)
    info = video_info(options.video)
    check_times(questions, info)
    if options.sheet and not options.sheet.absolute().parent.is_dir():
        raise ReplayError(f'{options.sheet}: there is no folder {options.sheet.absolute().parent}')
    from tww_ros import Engine, load_model
    printer = _JsonPrinter() if options.as_json else _Printer()
    model = load_model(**options.model)
    printer.begin(model.describe(), options.model['name'], info)
    seen = _Seen(options.config.watch) if options.sheet else None
    with Engine(model, options.config) as engine:
        noted = 0
        for answered in ask_video(engine, options.video, questions, camera=CAMERA,
                                  timeout_s=options.timeout_s,
                                  on_frame=seen.add if seen else None):
            if seen:
                seen.close()
            notes = engine.memory.notes()
            printer.notes(notes[noted:])
            noted = len(notes)
            printer.answer(answered, engine.stats())
        segments = engine.memory.segments()
        printer.end(segments, notes, engine.stats())
    if seen:
        seen.draw(options.sheet, segments, f'{info.path.name}, watched by {options.model["name"]}')
        printer.drawn(options.sheet)
    return 0


class _Printer:
    """Words for people."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)

    def begin(self, description: str, name: str, info: VideoInfo) -> None:
        say = self._console.print
        say(f'model   {description}', style='dim')
        say(f'video   {info.path}: {info.width}×{info.height}, {info.fps:g} frames/s, '
            f'{info.duration_s:.1f} s', style='dim')
        if name == 'tiny-random':
            say(TINY_WARNING, style='yellow')

    def notes(self, notes: list[Note]) -> None:
        for note in notes:
            self._console.print(f'  note  {_span(note)}  {_line(note.text)}', style='cyan')

    def answer(self, answered: TimedAnswer, stats: Any) -> None:
        say, answer = self._console.print, answered.answer
        say()
        say(f'at {answered.at_s:.1f} s   {answered.question.text}', style='bold')
        say(f'  {_line(answer.text)}', style='green')
        if answer.reasoning:
            say(f'  because: {_line(answer.reasoning)}')
        for choice, share in zip(answered.question.choices, answer.choice_probabilities,
                                 strict=False):
            say(f'  {share:6.1%}  {choice}')
        if answer.evidence:
            table = Table('segment', 'seconds', 'attention', 'held as', 'note', box=None,
                          pad_edge=False, header_style='dim')
            for item in answer.evidence:
                table.add_row(str(item.segment_id), _span(item), f'{item.score:.1%}', item.tier,
                              _line(item.note)[:60])
            say(table)
        say(f'  knew the video to {answer.as_of_ns / NS_PER_S:.2f} s: {stats.frames_watched} of '
            f'{stats.frames_received} frames watched, {stats.memory_tokens} tokens in memory',
            style='dim')
        say(f'  tokens: {answer.prompt_tokens} asked, {answer.reused_tokens} reused, '
            f'{answer.completion_tokens} answered ({answer.finish_reason}); first after '
            f'{answer.first_token_s:.2f} s, all after {answer.total_s:.2f} s', style='dim')

    def end(self, segments: list[SegmentInfo], notes: list[Note], stats: Any) -> None:
        """Nothing to add: notes and answers were printed as they came."""

    def drawn(self, path: Path) -> None:
        self._console.print(f'watched frames: {path}', style='dim')


class _JsonPrinter:
    """Collects, and prints one object at the end."""

    def __init__(self) -> None:
        self._data: dict[str, Any] = {}

    def begin(self, description: str, name: str, info: VideoInfo) -> None:
        self._data = {'model': description, 'video': str(info.path), 'answers': []}
        if name == 'tiny-random':
            self._data['warning'] = TINY_WARNING

    def notes(self, notes: list[Note]) -> None:
        """They are all printed at the end."""

    def answer(self, answered: TimedAnswer, stats: Any) -> None:
        data = dataclasses.asdict(answered.answer)
        seconds = {name: data.pop(name) for name in ('queue_s', 'first_token_s', 'total_s')}
        self._data['answers'].append({
            'at_s': answered.at_s, 'question': answered.question.text,
            'choices': answered.question.choices, **data, 'seconds': seconds})

    def end(self, segments: list[SegmentInfo], notes: list[Note], stats: Any) -> None:
        self._data['notes'] = [{name: value for name, value in dataclasses.asdict(note).items()
                                if name != 'seconds'} for note in notes]
        self._data['segments'] = [dataclasses.asdict(segment) for segment in segments]
        self._data['frames'] = {'received': stats.frames_received, 'watched': stats.frames_watched,
                                'dropped': stats.frames_dropped}
        print(json.dumps(self._data, indent=2, ensure_ascii=False))

    def drawn(self, path: Path) -> None:
        """The JSON is printed already, and the caller knows the path."""


class _Seen:
    """Thumbnails of the watched frames by segment, cut as the engine cuts them."""

    def __init__(self, watch: WatchConfig) -> None:
        self._intake = FrameIntake(watch)
        self._frames: dict[Any, list[Frame]] = {}

    def add(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        size = (min(width, _THUMBNAIL_PX), max(1, height * min(width, _THUMBNAIL_PX) // width))
        small = np.asarray(Image.fromarray(frame.image).resize(size, Image.Resampling.BOX))
        self._keep(self._intake.add(dataclasses.replace(frame, image=small)).events)

    def close(self) -> None:
        self._keep(self._intake.close('flush'))

    def draw(self, path: Path, segments: list[SegmentInfo], title: str) -> None:
        by_start = {segment.start_ns: segment for segment in segments}
        strips = []
        for frames in self._frames.values():
            segment = by_start.get(frames[0].stamp_ns)
            name = f'segment {segment.id}' if segment else 'segment'
            strips.append(Strip(f'{name}   {frames[0].stamp_ns / NS_PER_S:.1f} to '
                                f'{frames[-1].stamp_ns / NS_PER_S:.1f} s', frames,
                                segment.note if segment else ''))
        try:
            contact_sheet(strips, title=title, t0_ns=0).save(path)
        except (OSError, ValueError) as error:
            raise ReplayError(f'{path}: the picture cannot be written ({error}); choose another '
                              'name such as seen.png') from error

    def _keep(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, PatchReady):
                self._frames.setdefault(event.segment_key, []).extend(event.patch.frames)


def _span(item: Any) -> str:
    return f'{item.start_ns / NS_PER_S:.1f}–{item.end_ns / NS_PER_S:.1f}'


def _line(text: str) -> str:
    """One printable line: a random model writes control characters too."""
    return ''.join(c if c.isprintable() else ' ' for c in ' '.join(text.split()))
