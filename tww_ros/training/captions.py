"""Data sets from users' own videos: timed captions become notes, timed questions become rounds.

In: videos, each with a file of questions and, unless a teacher writes the notes, one of captions.
Out: a folder (training.dataset), one sample a video. Videos are cut as the engine would cut them:
by time, and by every question. `docs/training.md` has the formats with an example.

A caption is told in the first segment whose newest frame is not before the caption's end, as an
event of the tabletop is. Reasonings come from the question, from the notes at its `evidence_s`, or
from the teacher; without any of these the answer is taken to be 'seen now'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from tww_ros.errors import DatasetError
from tww_ros.replay.video import read_video, video_info
from tww_ros.training.checks import check_times
from tww_ros.training.dataset import FRAME_FORMATS, DatasetWriter
from tww_ros.training.fields import Field, load_json
from tww_ros.training.format import (
    SLACK_S,
    Entry,
    EntryQuestion,
    EntrySegment,
    closed_by,
    file_name,
    said,
)
from tww_ros.training.tabletop import LONG
from tww_ros.training.teacher import Teacher
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.segmentation import Event, PatchReady, Segmenter
from tww_ros.world.notes import NOTHING_NEW

SEEN_NOW = 'seen now'
_SRT_TIME = r'(\d+):(\d\d):(\d\d)[,.](\d{1,3})'
_SRT_TIMES = re.compile(rf'{_SRT_TIME}\s*-->\s*{_SRT_TIME}')
# Containers round their duration; a question may be this much later than the end.
_LATE_S = 0.5


@dataclass(frozen=True)
class Caption:
    """What happened from start_s to end_s. where: its place in the file, for messages."""

    start_s: float
    end_s: float
    text: str
    where: str = ''


@dataclass(frozen=True)
class Asked:
    """One question of a user's file. evidence_s: moments that show the answer."""

    at_s: float
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    reasoning: str = ''
    evidence_s: tuple[float, ...] = ()
    session: str = 'default'
    family: str = ''
    kind: str = ''
    where: str = ''


@dataclass(frozen=True)
class VideoSource:
    """One video with its files; captions None: the teacher writes the notes."""

    video: Path
    questions: Path
    captions: Path | None = None


@dataclass(frozen=True)
class VideoOptions:
    """max_side_px: larger frames are shrunk to it."""

    out: Path
    sources: tuple[VideoSource, ...]
    segment_s: float = 4.0
    sample_fps: float = 1.0
    max_side_px: int = 518
    frames: str = 'jpg'

    def __post_init__(self) -> None:
        for name, value, low, high in (('segment-s', self.segment_s, 0.1, 600),
                                       ('sample-fps', self.sample_fps, 0.05, 60),
                                       ('max-side', self.max_side_px, 32, 8_192)):
            if not low <= value <= high:
                raise DatasetError(f'{name}: expected {low:g} to {high:g}, got {value:g}')
        if self.frames not in FRAME_FORMATS:
            raise DatasetError(f'frames: expected {" or ".join(FRAME_FORMATS)}, got '
                               f'{self.frames!r}')


@dataclass
class VideoReport:
    """unseen: captions that end after the last frame, and are in no note."""

    samples: int = 0
    unseen: list[str] = field(default_factory=list)


def build_videos(options: VideoOptions, teacher: Teacher | None = None, resume: bool = False,
                 progress: bool = False) -> VideoReport:
    """Make the data set. Raises DatasetError, and ReplayError for a video that cannot be read."""
    inputs = []
    for source in options.sources:
        if source.captions is None and teacher is None:
            raise DatasetError(f'{source.video}: expected captions or a teacher, got neither; '
                               'give --captions FILE or --teacher URL')
        captions = None if source.captions is None else read_captions(source.captions)
        inputs.append((source, captions, read_questions(source.questions)))
    writer = DatasetWriter(options.out, _made(options, teacher), resume)
    report = VideoReport(len(inputs))
    for index, (source, captions, questions) in enumerate(inputs):
        if not _is_done(writer, index, source):
            entry, unseen = _Builder(writer, options, teacher, index, source, progress).run(
                captions, questions)
            writer.write(entry)
            report.unseen += unseen
    writer.finish(len(inputs))
    return report


# What users write

def read_captions(path: Path) -> list[Caption]:
    """Captions of a .json, .jsonl or .srt file, by their ends. Raises DatasetError."""
    text = _read(path, 'captions')
    if path.suffix == '.srt':
        captions = list(_srt(text, path.name))
    elif path.suffix in ('.json', '.jsonl'):
        captions = [_caption(place) for place in _records(text, path)]
    else:
        raise DatasetError(f'{path}: expected .json, .jsonl or .srt, got {path.suffix!r}')
    return sorted(captions, key=lambda caption: (caption.end_s, caption.start_s))


def read_questions(path: Path) -> list[Asked]:
    """Questions of a .json or .jsonl file, by their times. Raises DatasetError."""
    asked = [_asked(place) for place in _records(_read(path, 'questions'), path)]
    if not asked:
        raise DatasetError(f'{path.name}: expected at least one question, got none')
    return sorted(asked, key=lambda each: each.at_s)


def _read(path: Path, what: str) -> str:
    try:
        # Editors on Windows put a mark before the first character.
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DatasetError(f'{path.name}: expected UTF-8 text, got other bytes at {error.start}; '
                           'save it as UTF-8') from error
    except OSError as error:
        raise DatasetError(f'{path}: expected a file with {what}, got {error.strerror}') from error


def _records(text: str, path: Path) -> list[Field]:
    if path.suffix != '.jsonl':
        return load_json(text, path.name).items()
    lines = enumerate(text.splitlines(), start=1)
    return [load_json(line, f'{path.name} line {number}') for number, line in lines
            if line.strip()]


def _caption(place: Field) -> Caption:
    place.mapping(('start', 'end', 'text'))
    start_s = place['start'].number(low=0)
    return Caption(start_s, place['end'].number(low=start_s), _line(place['text']),
                   f'{place.file}: {place["text"].path}')


def _srt(text: str, file: str) -> Iterator[Caption]:
    blocks = [block.splitlines() for block in re.split(r'\n\s*\n', text.strip()) if block.strip()]
    for number, lines in enumerate(blocks, start=1):
        where = f'{file}: block {number}'
        times = next((_SRT_TIMES.search(line) for line in lines[:2]
                      if _SRT_TIMES.search(line)), None)
        if times is None:
            raise DatasetError(f'{where}: expected a line "00:00:01,000 --> 00:00:02,500", got '
                               f'{lines[0]!r}')
        start_s, end_s = _srt_s(times.groups()[:4]), _srt_s(times.groups()[4:])
        if end_s < start_s:
            raise DatasetError(f'{where}: expected an end after the start, got {times[0]!r}')
        first = next(k for k, line in enumerate(lines) if _SRT_TIMES.search(line))
        words = re.sub(r'</?[bciu][^>]*>|</?font[^>]*>', '', ' '.join(lines[first + 1:]))
        yield Caption(start_s, end_s, _line(Field(words, where, 'text')), where)


def _srt_s(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3_600 + int(minutes) * 60 + int(seconds) + float(f'0.{fraction}')


def _asked(place: Field) -> Asked:
    known = ('time', 'question', 'options', 'answer', 'reasoning', 'evidence_s', 'session',
             'family', 'kind')
    told = place.mapping(known)
    at_s = place['time'].number(low=0)
    choices = tuple(_line(option) for option in place['options'].items()) if 'options' in told \
        else ()
    if len(choices) == 1 or len(set(choices)) != len(choices):
        place['options'].fail('at least two options that differ from each other')
    answer = _line(place['answer'])
    if choices and answer not in choices:
        place['answer'].fail(f'one of its options, {", ".join(choices)}',
                             hint='write the option out, not its letter')
    evidence = [moment.number(low=0, high=at_s) for moment in place['evidence_s'].items()] \
        if 'evidence_s' in told else []
    reasoning = _line(place['reasoning']) if 'reasoning' in told else ''
    where = f'{place.file}: {place.path}.' if place.path else f'{place.file}: '
    check_times(reasoning, at_s, f'{where}reasoning', 'its question')
    words = {key: place[key].text() for key in ('session', 'family', 'kind') if key in told}
    return Asked(at_s, _line(place['question']), answer, choices, reasoning, tuple(evidence),
                 **words, where=where)


def _line(place: Field) -> str:
    return ' '.join(said(place).split())


def _is_done(writer: DatasetWriter, index: int, source: VideoSource) -> bool:
    """Whether the sample is there, and newer than all that it is made from."""
    if not writer.has(index):
        return False
    files = [source.video, source.questions, *([source.captions] if source.captions else [])]
    made_ns = (writer.folder / file_name(index)).stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= made_ns for file in files if file.exists())


def _made(options: VideoOptions, teacher: Teacher | None) -> dict[str, Any]:
    """What a data set is made from; the same when it is gone on with."""
    return {'source': 'videos', 'videos': [source.video.name for source in options.sources],
            'segment_s': options.segment_s, 'sample_fps': options.sample_fps,
            'max_side_px': options.max_side_px, 'frames': options.frames,
            'teacher': teacher.model if teacher else None}


# One video

class _Builder:
    """Makes the sample of one video, in the order of the stream."""

    def __init__(self, writer: DatasetWriter, options: VideoOptions, teacher: Teacher | None,
                 index: int, source: VideoSource, progress: bool) -> None:
        self._writer = writer
        self._options = options
        self._teacher = teacher
        self._index = index
        self._source = source
        self._progress = progress
        self._path = writer.frames_path(index)
        self._names: list[str] = []
        # Times of the frames: of the segments that are closed, and of the open one.
        self._cut: list[list[float]] = []
        self._open: list[float] = []

    def run(self, captions: list[Caption] | None, questions: list[Asked]
            ) -> tuple[Entry, list[str]]:
        """(the sample, captions that are in no note)"""
        info = video_info(self._source.video)
        for asked in questions:
            if 0 < info.duration_s < asked.at_s - _LATE_S:
                raise DatasetError(f'{asked.where}time: expected a time within '
                                   f'{self._source.video.name}, 0 to {info.duration_s:.1f} s, got '
                                   f'{asked.at_s:g}')
        size_px = self._watch([asked.at_s for asked in questions])
        segments, unseen = self._note(captions)
        rounds = self._rounds(segments, questions)
        end_s = max(info.duration_s, segments[-1].end_s, questions[-1].at_s)
        return Entry(
            index=self._index, stage=_stage(rounds, len(segments)), dataset='videos',
            video=self._source.video.name, is_image_sequence=False, frames_path=self._path,
            frame_files=tuple(self._names), original_size_px=(info.width, info.height),
            size_px=size_px, duration_s=end_s, video_fps=info.fps,
            sample_fps=self._options.sample_fps, segments=tuple(segments),
            questions=tuple(rounds)), unseen

    def _watch(self, times_s: list[float]) -> tuple[int, int]:
        """Write the frames and cut them into segments; returns their (width, height)."""
        options, waiting = self._options, list(times_s)
        segmenter, size_px = Segmenter('camera', options.segment_s), None
        for frame in tqdm(read_video(self._source.video, fps=options.sample_fps), unit='frame',
                          desc=self._source.video.name, disable=not self._progress):
            while waiting and frame.stamp_ns > waiting[0] * NS_PER_S:
                waiting.pop(0)
                self._take(segmenter.close('question'))
            size_px = size_px or _shrunk(frame.image, options.max_side_px)
            image = _resized(frame.image, size_px)
            self._names.append(self._writer.frame(self._path, len(self._names), image,
                                                  options.frames))
            # The segmenter keeps what it is given; the picture is on disk.
            self._take(segmenter.add(Frame(frame.stamp_ns, 'camera', image[:1, :1])))
        self._take(segmenter.close('flush'))
        return size_px

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, PatchReady):
                self._open += [frame.stamp_ns / NS_PER_S for frame in event.patch.frames]
            else:
                self._cut.append(self._open)
                self._open = []

    def _note(self, captions: list[Caption] | None) -> tuple[list[EntrySegment], list[str]]:
        segments: list[EntrySegment] = []
        waiting, taken, start_s = list(captions or ()), 0, 0.0
        for stamps in tqdm(self._cut, unit='note', disable=not self._progress):
            end_s = stamps[-1]
            if captions is None:
                files = self._names[taken:taken + len(stamps)]
                folder = self._writer.folder / self._path
                note = self._teacher.note(
                    [(stamp, folder / name) for stamp, name in zip(stamps, files, strict=True)],
                    [(before.end_s, before.note) for before in segments], end_s)
            else:
                told = []
                while waiting and waiting[0].end_s <= end_s + SLACK_S:
                    told.append(waiting.pop(0))
                for caption in told:
                    check_times(caption.text, end_s, caption.where, 'its segment\'s end')
                note = '; '.join(caption.text for caption in told) or NOTHING_NEW
            segments.append(EntrySegment(start_s, end_s, tuple(stamps), note))
            taken, start_s = taken + len(stamps), end_s
        return segments, [f'{caption.where} ({caption.text})' for caption in waiting]

    def _rounds(self, segments: list[EntrySegment], questions: list[Asked]
                ) -> list[EntryQuestion]:
        rounds: list[EntryQuestion] = []
        moments: list[int] = []
        for asked in tqdm(questions, unit='question', disable=not self._progress):
            after = closed_by(segments, asked.at_s)
            if after not in moments:
                moments.append(after)
            # At every second moment the newest note is not finished yet, as it happens live.
            noted = after - moments.index(after) % 2
            reasoning, proof = self._reasoning(asked, segments[:after])
            rounds.append(EntryQuestion(
                asked.at_s, after, noted, asked.text, asked.answer, reasoning=reasoning,
                choices=asked.choices, session=asked.session, family=asked.family,
                kind=asked.kind, proof=proof))
        return rounds

    def _reasoning(self, asked: Asked, closed: list[EntrySegment]
                   ) -> tuple[str, tuple[int, ...]]:
        """(reasoning, proof); closed: the segments that the question sees."""
        ends = [segment.end_s for segment in closed]
        proof = tuple(sorted({
            next((k for k, end_s in enumerate(ends) if moment_s <= end_s + SLACK_S),
                 len(ends) - 1) for moment_s in asked.evidence_s}))
        if asked.reasoning:
            return asked.reasoning, proof
        if self._teacher is not None:
            notes = [(segment.end_s, segment.note) for segment in closed]
            return self._teacher.reasoning(notes, asked.text, asked.choices, asked.answer,
                                           asked.at_s), proof
        cited = [closed[k].note for k in proof if closed[k].note != NOTHING_NEW]
        if proof and not cited:
            raise DatasetError(f'{asked.where}evidence_s: expected moments that some caption '
                               f'tells of, got {list(asked.evidence_s)}; add a caption, or a '
                               'reasoning')
        return '; '.join(cited) or SEEN_NOW, proof


def _stage(rounds: list[EntryQuestion], segments: int) -> int:
    if len({each.session for each in rounds}) == len(rounds):
        return 1
    return 3 if segments >= LONG.segments[0] else 2


def _shrunk(image: np.ndarray, most_px: int) -> tuple[int, int]:
    """(width, height)"""
    height, width = image.shape[:2]
    scale = min(1.0, most_px / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _resized(image: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size_px:
        return image
    return np.asarray(Image.fromarray(image).resize(size_px, Image.Resampling.BICUBIC))
