"""Data sets from the tabletop world: the three stages, with frames, on disk.

In: BuildOptions. Out: a folder (training.dataset). The same options give the same bytes; sample k
of a stage depends on the seed, the split, the stage and k alone. It knows nothing of models.

    stage   rounds                            recipe
    1       single: a session each            SINGLE
    2       many in one session               MULTI
    3       many, proofs minutes back,        LONG
            other events in between

Rounds of stages 2 and 3 are one session a stream, because a reader of the reference's format takes
all rounds of a file as one conversation.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tww_ros.errors import DatasetError
from tww_ros.training import tabletop
from tww_ros.training.dataset import FRAME_FORMATS, DatasetWriter
from tww_ros.training.fields import Field
from tww_ros.training.format import Entry, EntryQuestion, EntrySegment
from tww_ros.training.layout import Sample
from tww_ros.world.table import TEST_SEEDS, TRAIN_SEEDS

# A recording begins at its start.
RECIPES = {stage: dataclasses.replace(recipe, video='all', sessions=1, late_share=0.0)
           for stage, recipe in ((1, tabletop.SINGLE), (2, tabletop.MULTI), (3, tabletop.LONG))}
SPLITS = {'train': TRAIN_SEEDS, 'test': TEST_SEEDS}
SIZES_PX = range(64, 1_025)


@dataclass(frozen=True)
class BuildOptions:
    """samples: of each stage. Worlds of the two splits share no seed."""

    out: Path
    stages: tuple[int, ...] = (1, 2, 3)
    samples: int = 100
    seed: int = 0
    split: str = 'train'
    size_px: int = 192
    frames: str = 'jpg'

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DatasetError(f'samples: expected at least 1, got {self.samples}')
        if self.size_px not in SIZES_PX:
            raise DatasetError(f'size: expected {SIZES_PX[0]} to {SIZES_PX[-1]} px, got '
                               f'{self.size_px}')
        for name, value, known in (('split', self.split, tuple(SPLITS)),
                                   ('frames', self.frames, FRAME_FORMATS)):
            if value not in known:
                raise DatasetError(f'{name}: expected {" or ".join(known)}, got {value!r}')


def build(options: BuildOptions, resume: bool = False, progress: bool = False) -> int:
    """Make the data set; returns the number of its samples. Raises DatasetError."""
    made = {'source': 'tabletop', **dataclasses.asdict(options)}
    del made['out']
    writer = DatasetWriter(options.out, made, resume)
    total = len(options.stages) * options.samples
    with tqdm(total=total, unit='sample', disable=not progress) as bar:
        for index in range(total):
            stage = options.stages[index // options.samples]
            bar.set_postfix(stage=stage)
            if not writer.has(index):
                _build_one(writer, options, index, stage)
            bar.update()
    writer.finish(total)
    return total


def remake(index: int, stage: int, told: Field) -> Entry:
    """The entry that the simulator makes for `metadata.tww.tabletop`, without its frames."""
    seed = told['seed'].whole()
    size_px = told['size_px'].whole(low=SIZES_PX[0], high=SIZES_PX[-1])
    form = told['frames'].text()
    recipe = dataclasses.replace(RECIPES[stage], video='none')
    return to_entry(tabletop.sample(seed, recipe, size_px), index, stage,
                    {'seed': seed, 'size_px': size_px, 'frames': form})


def to_entry(sample: Sample, index: int, stage: int, simulated: dict[str, Any]) -> Entry:
    """A tabletop sample as an entry; its frames are called as they will be."""
    segments, start_s = [], 0.0
    for segment in sample.segments:
        # The tabletop's segments have one or two frames.
        stamps = tuple(dict.fromkeys((segment.start_s, segment.end_s)))
        segments.append(EntrySegment(start_s, segment.end_s, stamps, segment.note))
        start_s = segment.end_s
    questions = [EntryQuestion(
        segments[due.after - 1].end_s, due.after, due.noted, due.question, due.answer,
        reasoning=due.reasoning, choices=due.choices, session=due.session, family=due.family,
        kind=due.kind, proof=due.proof) for due in sample.rounds]
    count = sum(len(segment.stamps_s) for segment in segments)
    size_px = (simulated['size_px'],) * 2
    path, rate = f'raw_picture/{index}/', 1 / tabletop.FRAME_S
    return Entry(
        index=index, stage=stage, dataset='tabletop', video=path, is_image_sequence=True,
        frames_path=path, frame_files=tuple(f'frame_{number + 1:04d}.{simulated["frames"]}'
                                            for number in range(count)),
        original_size_px=size_px, size_px=size_px, duration_s=start_s, video_fps=rate,
        sample_fps=rate, segments=tuple(segments), questions=tuple(questions),
        simulated=simulated)


def world_seed(options: BuildOptions, stage: int, number: int) -> int:
    """The seed of sample `number` of a stage: the first that has questions."""
    rng = random.Random(f'{options.seed} {options.split} {stage} {number}')
    recipe = dataclasses.replace(RECIPES[stage], video='none')
    while True:
        seed = rng.choice(SPLITS[options.split])
        if tabletop.sample(seed, recipe, SIZES_PX[0]).rounds:
            return seed


def _build_one(writer: DatasetWriter, options: BuildOptions, index: int, stage: int) -> None:
    seed = world_seed(options, stage, index % options.samples)
    sample = tabletop.sample(seed, RECIPES[stage], options.size_px)
    path = writer.frames_path(index)
    frames = [image for segment in sample.segments for patch in segment.patches
              for image in patch.frames]
    for number, image in enumerate(frames):
        writer.frame(path, number, image, options.frames)
    writer.write(to_entry(sample, index, stage, {
        'seed': seed, 'size_px': options.size_px, 'frames': options.frames}))
