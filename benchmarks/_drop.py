"""How many vision tokens the drop saves, and whether what changed is kept: no model needed.

In: the tabletop's test worlds, as the embedded model watches them (one token a place), and real
videos: the samples, and the one that the variable TWW_VTEST names (a camera that stands still
over people who walk: OpenCV's vtest.avi). Out: metrics of the report.

A change of the tabletop is counted where its ground truth says so: at a place that is in view,
something else stands than when the place was last kept in view. Hands are not counted as changes.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from _report import Report, median

from tww_ros.config import WatchConfig
from tww_ros.replay.video import read_video
from tww_ros.training.embedded import settings
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.pixels import to_pixels
from tww_ros.video.segmentation import FrameIntake, Patch, PatchReady
from tww_ros.video.token_drop import TokenDrop
from tww_ros.world.render import Renderer
from tww_ros.world.table import PLACES, TEST_SEEDS, Episode, simulate
from tww_ros.world.truth import truth_at

THRESHOLD = 0.08
OTHER_THRESHOLDS = (0.04, 0.06, 0.12)
DROPPED_TARGET = 0.828
VIDEO_S = 80.0
WORLD_PX = 192
Seen = tuple[object, bool] | None


def measure_drop(report: Report, quick: bool) -> None:
    """Share of tokens dropped, changes kept, time per patch."""
    worlds = [simulate(seed, 120.0) for seed in TEST_SEEDS[:4 if quick else 24]]
    for threshold in (THRESHOLD, *(() if quick else OTHER_THRESHOLDS)):
        end = '' if threshold == THRESHOLD else f'_at_{threshold:.2f}'
        measure_tabletop(report, worlds, threshold, end)
        for name, path in videos():
            measure_video(report, name, path, threshold, end)
    for name in ('tabletop', 'vtest'):
        if f'{name}_dropped_share' in report.metrics:
            report.target(f'{name}_dropped_share', '>=', DROPPED_TARGET)


def videos() -> Iterator[tuple[str, Path]]:
    """(name, path) of each real video that is there."""
    named = [('vtest', os.environ.get('TWW_VTEST', ''))]
    samples = os.environ.get('TWW_SAMPLE_VIDEOS', '')
    if samples:
        named += [(path.stem, str(path)) for path in sorted(Path(samples).glob('*.mp4'))]
    for name, path in named:
        if path:
            yield name, Path(path)


def measure_tabletop(report: Report, worlds: list[Episode], threshold: float, end: str) -> None:
    """Worlds as the embedded model's settings watch them."""
    watch = dataclasses.replace(settings().watch, drop_threshold=threshold)
    token_drop = TokenDrop(watch)
    changes = kept = 0
    for epoch, world in enumerate(worlds):
        shown: list[Seen] = [None] * len(PLACES)
        for patch, mask, _ in masks(token_drop, watch, drawn(world), epoch):
            now = in_view(world, patch.frames[-1].stamp_ns / NS_PER_S)
            for place in range(len(PLACES)):
                if now[place] is not None and shown[place] not in (None, now[place]):
                    changes += 1
                    kept += bool(mask[place])
                if mask[place]:
                    shown[place] = now[place] or shown[place]
    report.add(f'tabletop_dropped_share{end}', token_drop.dropped_share)
    report.add(f'tabletop_changes_kept_share{end}', kept / changes)


def measure_video(report: Report, name: str, path: Path, threshold: float, end: str) -> None:
    """A real video with the default settings."""
    watch = WatchConfig(drop_threshold=threshold)
    token_drop = TokenDrop(watch)
    times_s = [seconds for *_, seconds in
               masks(token_drop, watch, read_video(path, fps=watch.sample_fps, end_s=VIDEO_S))]
    report.add(f'{name}_dropped_share{end}', token_drop.dropped_share)
    if not end:
        report.add(f'{name}_drop_ms_per_patch', 1e3 * median(times_s))


def masks(token_drop: TokenDrop, watch: WatchConfig, frames: Iterable[Frame], epoch: int = 0
          ) -> Iterator[tuple[Patch, np.ndarray, float]]:
    """Each temporal patch with what is kept of it, and the seconds that took."""
    intake = FrameIntake(watch)
    for frame in frames:
        for event in intake.add(frame).events:
            if not isinstance(event, PatchReady):
                continue
            patch = event.patch
            pixels = to_pixels([frame.image for frame in patch.frames],
                               min_pixels=watch.min_pixels, max_pixels=watch.max_pixels)
            started_s = time.perf_counter()
            mask = token_drop.keep(pixels, camera=frame.camera, epoch=epoch,
                                   stamp_ns=patch.stamp_ns)
            yield patch, mask, time.perf_counter() - started_s


def drawn(world: Episode) -> Iterator[Frame]:
    """The world's frames, one a second."""
    renderer = Renderer(world, WORLD_PX)
    for second in range(int(world.duration_s)):
        yield Frame(second * NS_PER_S, 'table', renderer.frame(float(second)))


def in_view(world: Episode, t_s: float) -> list[Seen]:
    """What can be seen to stand at each place, (thing, covered); None behind a hand."""
    truth = truth_at(world, t_s)
    found: list[Seen] = []
    for place, thing in enumerate(truth.standing.things):
        covered = place in truth.standing.covered
        found.append((None if covered else thing, covered) if truth.visible[place] else None)
    return found
