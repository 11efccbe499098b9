"""Whether the segment that proves an answer is among the first that a question brings back.

In: tabletop worlds with hundreds of segments, their perfect notes, questions and their proofs.
Out: recall@8 of the newest proving segment of each question, of all of them, and by kind. Notes
are the perfect ones, so that this measures the search and not the model that wrote them.
"""

from __future__ import annotations

import random
from collections import defaultdict

import torch
from _report import Report

from tww_ros.evaluation.protocol import Cutter, distance
from tww_ros.memory.archive import Archive
from tww_ros.memory.block import BlockShape
from tww_ros.memory.notes import Scope
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.store import Store
from tww_ros.training.embedded import settings
from tww_ros.types import NS_PER_S, Note
from tww_ros.world.questions import Asker
from tww_ros.world.table import TEST_SEEDS, Pace, simulate

TOP = 8
FRAMES_A_PATCH = 2
# No keys are kept here.
SHAPE = BlockShape(1, 1, 8, torch.float32, torch.device('cpu'))
SEGMENTS = 600
QUESTIONS = 120


def measure_recall(report: Report, quick: bool) -> None:
    """Recall of the proving segments among the first TOP."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for number in range(2 if quick else 12):
        archive, cutter = remembered(TEST_SEEDS[7_000 + number])
        asker, texts = Asker(cutter.chronicle, random.Random(number)), set()
        while len(texts) < QUESTIONS:
            made = asker.ask()
            # What can be seen now needs no search.
            if not distance(made, cutter.chronicle) or made.text in texts:
                continue
            texts.add(made.text)
            found = archive.search(made.text, Scope(0), TOP)
            newest = len(cutter.segments) - 1 - distance(made, cutter.chronicle)
            hits['newest'].append(newest in found)
            hits['all'].append({*made.proof} <= {*found})
            hits[f'kind_{made.kind}'].append(newest in found)
    for name, verdicts in sorted(hits.items()):
        report.add(f'recall_at_{TOP}_{name}', sum(verdicts) / len(verdicts))
    report.add('recall_questions', len(hits['newest']))
    report.target(f'recall_at_{TOP}_newest', '>=', 0.97)


def remembered(seed: int) -> tuple[Archive, Cutter]:
    """The perfect notes of a world, in an index."""
    seconds = SEGMENTS * 2.0
    config = settings()
    cutter = Cutter(simulate(seed, seconds, Pace(gap_s=3.0)), config.watch, FRAMES_A_PATCH)
    for number in range(int(seconds)):
        cutter.add(round((0.3 + number) * NS_PER_S))
    cutter.close()
    archive = Archive(Store.in_memory(), SHAPE, None, on_disk=False)
    for number, segment in enumerate(cutter.segments):
        first_ns, last_ns = segment.stamps_ns[0], segment.stamps_ns[-1]
        record = SegmentRecord(number, number, 'tabletop', 0, first_ns, last_ns)
        archive.add_segment(record, None)
        archive.add_note(record, Note(number, 'tabletop', first_ns, last_ns, segment.note, 0,
                                      'stop', 0.0), None)
    return archive, cutter
