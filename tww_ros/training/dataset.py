"""A data set on disk: written so that a kill leaves no doubt, read sample by sample, in batches.

In: entries and frames, or a folder. Out: a folder, or Samples and Batches.

    DIR/dataset.json           how many samples, and what they were made from; written last
    DIR/dataset.partial.json   instead of it while the data set is being made
    DIR/data_000000.json       one sample (training.format); written when all its frames are
    DIR/raw_picture/0/frame_0001.jpg

Every sample is checked when it is read (training.checks): one that tells what comes later cannot
be trained on. A folder without either of the first two files is taken as it is, so that data in
the reference's format needs nothing added.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tww_ros.config import EngineConfig, WatchConfig
from tww_ros.errors import DatasetError
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.training.checks import check
from tww_ros.training.fields import Field, load_json
from tww_ros.training.format import Entry, document, file_name, parse
from tww_ros.training.forward import Batch, Rotations, collate
from tww_ros.training.layout import Sample, SamplePatch, SampleRound, SampleSegment, plan
from tww_ros.video.pixels import target_size
from tww_ros.video.segmentation import TEMPORAL_PATCH_SIZE

MANIFEST, PARTIAL = 'dataset.json', 'dataset.partial.json'
FRAME_FORMATS = ('jpg', 'png')
# A merged vision token covers 2 × 2 patches of 16 px.
_FACTOR_PX = 32
_STAGE_NUMBERS = {'single': 1, 'multi': 2, 'long': 3}
# One sample in so many is never trained on.
_HELD_OUT_ONE_IN = 10


# Writing

class DatasetWriter:
    """Makes a data set in a folder, or goes on with one that the same `made` began."""

    def __init__(self, folder: Path, made: Mapping[str, Any], resume: bool = False) -> None:
        """made: what it is made from, as JSON. Raises DatasetError when the folder holds
        something else, or something at all without `resume`."""
        self.folder = folder
        self._made = json.loads(json.dumps(made))
        if folder.is_dir() and any(folder.iterdir()):
            self._take_over(resume)
        folder.mkdir(parents=True, exist_ok=True)
        self.complete = (folder / MANIFEST).exists()
        if not self.complete:
            _write(folder / PARTIAL, {'made': self._made})

    def _take_over(self, resume: bool) -> None:
        found = next((name for name in (MANIFEST, PARTIAL) if (self.folder / name).exists()), None)
        if found is None:
            raise DatasetError(f'{self.folder}: expected an empty folder or a data set, got other '
                               'files; choose another folder')
        if not resume:
            raise DatasetError(f'{self.folder} holds a data set already ({found}); go on with '
                               '--resume, or choose another folder')
        before = _load(self.folder, found)['made'].mapping()
        changed = [name for name in {**before, **self._made}
                   if before.get(name) != self._made.get(name)]
        if changed:
            raise DatasetError(f'{self.folder / found}: expected the same {changed[0]} as before, '
                               f'{before.get(changed[0])!r}, got {self._made.get(changed[0])!r}; '
                               'choose another folder')

    def has(self, index: int) -> bool:
        """Whether that sample is done."""
        return (self.folder / file_name(index)).exists()

    def frames_path(self, index: int) -> str:
        """Where the frames of that sample go; what a kill left there is removed."""
        if self.complete:
            _write(self.folder / PARTIAL, {'made': self._made})
            (self.folder / MANIFEST).unlink()
            self.complete = False
        path = f'raw_picture/{index}/'
        shutil.rmtree(self.folder / path, ignore_errors=True)
        (self.folder / path).mkdir(parents=True)
        return path

    def frame(self, path: str, number: int, image: np.ndarray, form: str) -> str:
        """Write frame `number` (from 0) of frames_path: uint8 [H, W, 3]. Returns its name."""
        name = f'frame_{number + 1:04d}.{form}'
        data = io.BytesIO()
        if form == 'jpg':
            Image.fromarray(image).save(data, 'JPEG', quality=95, subsampling=0)
        else:
            Image.fromarray(image).save(data, 'PNG', compress_level=4)
        (self.folder / path / name).write_bytes(data.getvalue())
        return name

    def write(self, entry: Entry) -> None:
        """Write a sample whose frames are there. Raises DatasetError when it breaks a rule."""
        told = document(entry)
        parsed = parse(json.dumps(told), file_name(entry.index))
        check(parsed, file_name(entry.index))
        _write(self.folder / file_name(entry.index), told)

    def finish(self, samples: int) -> None:
        """Say that the data set is complete."""
        _write(self.folder / MANIFEST, {'format': 'think-while-watching', 'version': 1,
                                        'samples': samples, 'made': self._made})
        (self.folder / PARTIAL).unlink(missing_ok=True)
        self.complete = True


def _write(path: Path, value: Any) -> None:
    """As a whole or not at all."""
    partial = path.with_suffix('.tmp')
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(partial, path)


# Reading

class Dataset:
    """A complete data set; samples are read and checked when they are asked for."""

    def __init__(self, folder: str | Path) -> None:
        """Raises DatasetError when there is none, or one that is not complete."""
        self.folder = Path(folder)
        self.manifest: Field | None = None
        if not self.folder.is_dir():
            raise DatasetError(f'{folder}: expected a folder with a data set, got '
                               f'{"a file" if self.folder.exists() else "nothing"}; make one '
                               'with `tww data`')
        self.files = sorted(path.name for path in self.folder.glob('data_*.json'))
        if (self.folder / MANIFEST).exists():
            self.manifest = _load(self.folder, MANIFEST)
            count = self.manifest['samples'].whole(low=1)
            expected = [file_name(index) for index in range(count)]
            for name in sorted(set(expected) ^ set(self.files)):
                raise DatasetError(f'{MANIFEST}: samples: expected {count} samples in '
                                   f'{self.folder}, got {len(self.files)}; the first that '
                                   f'{"is missing" if name in expected else "is too many"} is '
                                   f'{name}')
        elif (self.folder / PARTIAL).exists():
            raise DatasetError(f'{self.folder} is not complete: expected {MANIFEST}, got '
                               f'{PARTIAL} and {len(self.files)} samples; run the command that '
                               'made it again with --resume')
        elif not self.files:
            raise DatasetError(f'{self.folder}: expected {MANIFEST} or data_000000.json, got '
                               'neither; make a data set with `tww data`')

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, number: int) -> Entry:
        """Sample `number`'s texts, checked; its frames are not looked at."""
        name = self.files[number]
        entry = parse(_text(self.folder, name), name)
        check(entry, name)
        return entry

    def frames(self, entry: Entry, number: int) -> Iterator[np.ndarray]:
        """The frames of an entry, uint8 [H, W, 3]. Raises DatasetError naming the frame."""
        for place, name in enumerate(entry.frame_files):
            where = f'{self.files[number]}: metadata.frame_files[{place}]'
            path = self.folder / entry.frames_path / name
            try:
                with Image.open(path) as picture:
                    image = np.asarray(picture.convert('RGB'))
            # Pillow has many names for a damaged picture.
            except Exception as error:
                reason = 'no such file' if isinstance(error, FileNotFoundError) else (
                    f'one that cannot be decoded ({error})')
                raise DatasetError(f'{where}: expected a picture at {entry.frames_path}{name}, '
                                   f'got {reason}') from error
            height, width = image.shape[:2]
            if (width, height) != entry.size_px:
                raise DatasetError(f'{where}: expected {entry.size_px[0]}×{entry.size_px[1]} px, '
                                   f'as metadata.normalized_resolution says, got '
                                   f'{width}×{height}')
            yield image

    def sample(self, number: int, watch: WatchConfig) -> Sample:
        """Sample `number` with its frames, laid out for a model that watches so."""
        entry = self.entry(number)
        return to_sample(entry, list(self.frames(entry, number)), watch)


def read_dataset(folder: str | Path, watch: WatchConfig | None = None) -> Iterator[Sample]:
    """All samples in order, checked and with their frames, one at a time.

    watch: how the model looks at pictures; by default as the embedded model does. Raises
    DatasetError for what is malformed or tells what comes later.
    """
    if watch is None:
        from tww_ros.training.embedded import settings
        watch = settings().watch
    dataset = Dataset(folder)
    for number in range(len(dataset)):
        yield dataset.sample(number, watch)


def to_sample(entry: Entry, frames: list[np.ndarray] | None, watch: WatchConfig) -> Sample:
    """An entry as a training sample. frames: all of its own; None leaves the video's tokens in
    place with black pictures, for counting."""
    width, height = entry.size_px
    rows, columns = (side // _FACTOR_PX for side in grid_px(entry, watch))
    if frames is None:
        frames = [np.zeros((height, width, 3), np.uint8)] * len(entry.frame_files)
    zero_s = entry.segments[0].stamps_s[0]
    segments, taken = [], 0
    for segment in entry.segments:
        patches = []
        stamps = segment.stamps_s
        for first in range(0, len(stamps), TEMPORAL_PATCH_SIZE):
            own = stamps[first:first + TEMPORAL_PATCH_SIZE]
            # As the engine and the tabletop do: the middle of the patch since the first frame.
            patches.append(SamplePatch((own[0] + own[-1]) / 2 - zero_s,
                                       tuple(frames[taken:taken + len(own)]), rows, columns))
            taken += len(own)
        segments.append(SampleSegment(stamps[0], stamps[-1], tuple(patches), segment.note,
                                      learn=segment.note is not None))
    rounds = [SampleRound(question.after, question.noted, question.session, question.text,
                          question.answer, question.reasoning, question.choices,
                          kind=question.kind, family=question.family, proof=question.proof)
              for question in entry.questions]
    return Sample(tuple(segments), tuple(rounds))


def grid_px(entry: Entry, watch: WatchConfig) -> tuple[int, int]:
    """(height, width) in px at which the model sees an entry's frames."""
    width, height = entry.size_px
    return target_size(height, width, factor=_FACTOR_PX, min_pixels=watch.min_pixels,
                       max_pixels=watch.max_pixels)


def _load(folder: Path, name: str) -> Field:
    return load_json(_text(folder, name), name)


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise DatasetError(f'{name}: expected UTF-8 text, got other bytes at {error.start}; the '
                           'file is damaged') from error
    except OSError as error:
        raise DatasetError(f'{name}: expected a file that can be read, got {error.strerror}'
                           ) from error


# Batches

class DatasetBatches:
    """Batches from a data set, as trainer.Batches asks for; made like those of the tabletop.

    A stage takes the samples of its number ('single' 1, 'multi' 2, 'long' 3), or all samples when
    there are none of it. About one sample in ten, chosen by its index, is held out.
    """

    def __init__(self, folder: str | Path, model: VideoLanguageModel, config: EngineConfig,
                 tokens: int, seed: int = 0) -> None:
        """Reads and checks the texts of all samples. Raises DatasetError."""
        self._dataset = Dataset(folder)
        self._codec = model.codec
        self._config = config
        self._tokens = tokens
        self._seed = seed
        self._rotations = Rotations(model.hf.config.text_config)
        entries = [self._dataset.entry(number) for number in range(len(self._dataset))]
        self._stages = [entry.stage for entry in entries]
        # Pictures of one batch have one size.
        self._sizes = [grid_px(entry, config.watch) for entry in entries]
        self._held_out = self._choose([entry.index for entry in entries])

    def batch(self, stage: str, number: int) -> Batch:
        """See trainer.Batches."""
        return self._make(random.Random(f'{self._seed} {stage} {number}'),
                          self.samples(stage, held_out=False))

    def held_out(self, stage: str, number: int) -> Batch:
        """See trainer.Batches."""
        return self._make(random.Random(f'held out {stage} {number}'),
                          self.samples(stage, held_out=True))

    def samples(self, stage: str, held_out: bool) -> list[int]:
        """Numbers of the samples that a stage trains on, or is checked on."""
        part = [k for k in range(len(self._dataset)) if (k in self._held_out) == held_out]
        return [k for k in part if self._stages[k] == _STAGE_NUMBERS.get(stage)] or part

    def _choose(self, indices: list[int]) -> frozenset[int]:
        """The held-out samples: of each stage at least one, and never all."""
        ranks = [zlib.crc32(str(index).encode()) for index in indices]
        held: set[int] = set()
        for stage in sorted(set(self._stages)):
            own = sorted((k for k, other in enumerate(self._stages) if other == stage),
                         key=lambda k: ranks[k])
            chosen = [k for k in own if ranks[k] % _HELD_OUT_ONE_IN == 0] or own[:1]
            held.update(chosen if len(chosen) < len(own) else chosen[:-1])
        if not held:
            raise DatasetError(f'{self._dataset.folder}: expected at least 2 samples of a stage, '
                               'one of them to be held out from training, got '
                               f'{len(indices)}; make more')
        return frozenset(held)

    def _make(self, rng: random.Random, numbers: list[int]) -> Batch:
        size = self._sizes[rng.choice(numbers)]
        fitting = [k for k in numbers if self._sizes[k] == size]
        plans, total = [], 0
        while total < self._tokens:
            made = self._dataset.sample(rng.choice(fitting), self._config.watch)
            plans.append(plan(made, self._codec, self._config))
            total += len(plans[-1])
        watch = self._config.watch
        return collate(plans, self._rotations, min_pixels=watch.min_pixels,
                       max_pixels=watch.max_pixels)

