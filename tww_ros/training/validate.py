"""A whole data set, looked through: every text, every frame, and the simulator's own answers.

In: a folder. Out: a Report with counts and what is wrong, one line a sample. Beyond what reading
checks (types, times, letters, what comes later) every frame is decoded, and every tabletop sample
is made again from its seed: notes, questions, reasonings and answers must be equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tww_ros.config import EngineConfig
from tww_ros.errors import DatasetError
from tww_ros.model.codec import TextCodec
from tww_ros.training.build import remake
from tww_ros.training.dataset import Dataset, to_sample
from tww_ros.training.fields import Field, shown
from tww_ros.training.format import Entry, document, file_name
from tww_ros.training.layout import plan

_MISSING = object()


@dataclass
class Report:
    """Counts of what is right; errors: one line for each sample that is not."""

    errors: list[str] = field(default_factory=list)
    samples: int = 0
    frames: int = 0
    segments: int = 0
    rounds: int = 0
    stages: Counter[int] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    learnt_tokens: int = 0

    def lines(self) -> list[str]:
        """For people."""
        told = [f'{self.samples} samples, {self.segments} segments, {self.frames} frames, '
                f'{self.rounds} rounds']
        if self.tokens:
            told.append(f'tokens: {self.tokens}, of which {self.learnt_tokens} are learnt')
        for name, counts in (('stages', self.stages), ('families', self.families),
                             ('kinds', self.kinds)):
            pairs = [f'{key or "(none)"} {count}' for key, count in sorted(counts.items())]
            told.append(f'{name}: {", ".join(pairs) or "none"}')
        return told


def validate(folder: str | Path, codec: TextCodec | None = None,
             config: EngineConfig | None = None, progress: bool = False) -> Report:
    """Look through a data set. codec and config (of one model): count its tokens too.

    Raises DatasetError when there is no complete data set to look through.
    """
    dataset, report = Dataset(folder), Report()
    for number in tqdm(range(len(dataset)), unit='sample', disable=not progress):
        try:
            entry = dataset.entry(number)
            report.frames += sum(1 for _ in dataset.frames(entry, number))
            if entry.simulated is not None:
                check_simulated(entry)
        except DatasetError as error:
            report.errors.append(str(error))
            continue
        _count(report, entry)
        if codec is not None:
            config = config or EngineConfig()
            planned = plan(to_sample(entry, None, config.watch), codec, config)
            report.tokens += len(planned)
            report.learnt_tokens += planned.learnt
    return report


def check_simulated(entry: Entry) -> None:
    """DatasetError unless the simulator, started again, tells the same."""
    file = file_name(entry.index)
    told = Field(entry.simulated, file, 'metadata.tww.tabletop')
    expected = document(remake(entry.index, entry.stage, told))
    place = _difference(document(entry), expected, '')
    if place is not None:
        path, got, wanted = place
        Field(got if got is not _MISSING else None, file, path).fail(
            f'{shown(wanted)}, as the simulator says' if wanted is not _MISSING else 'nothing',
            got='none' if got is _MISSING else '',
            hint='it was edited, or made by another version')


def _difference(got: Any, expected: Any, path: str) -> tuple[str, Any, Any] | None:
    """(place, got, expected) of the first difference; ours before the reference's keys."""
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in sorted({**expected, **got}, key=lambda key: (key != 'metadata', key != 'tww')):
            found = _difference(got.get(key, _MISSING), expected.get(key, _MISSING),
                                f'{path}.{key}' if path else key)
            if found is not None:
                return found
        return None
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        for number, pair in enumerate(zip(got, expected, strict=True)):
            found = _difference(*pair, f'{path}[{number}]')
            if found is not None:
                return found
        return None
    return None if got == expected else (path, got, expected)


def _count(report: Report, entry: Entry) -> None:
    report.samples += 1
    report.segments += len(entry.segments)
    report.rounds += len(entry.questions)
    report.stages[entry.stage] += 1
    report.families.update(question.family for question in entry.questions)
    report.kinds.update(question.kind for question in entry.questions)


def codec_of(name: str) -> tuple[TextCodec, EngineConfig]:
    """A model's tokenizer and settings by the model's name, without its weights."""
    from transformers import AutoConfig, AutoTokenizer

    from tww_ros.model.marks import folder_of, local_marks
    from tww_ros.model.prompts import STYLES
    folder = folder_of(name)
    source, marks = str(folder) if folder.is_dir() else name, local_marks(name)
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(source), AutoConfig.from_pretrained(
            source)
        codec = TextCodec(tokenizer, name=name, style=STYLES['tww'], scheme='decoupled',
                          vocabulary=config.text_config.vocab_size,
                          video_pad_id=config.video_token_id)
    except Exception as error:
        raise DatasetError(f'--model {name}: expected a Qwen3-VL checkpoint with its tokenizer, '
                           f'got {error}') from error
    return codec, EngineConfig.from_flat(marks.settings)
