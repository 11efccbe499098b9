"""Reader: the source streams. Encoded patches in, spans out, closed segments into the bank.

In: PatchItem and CloseItem in the order the watcher sent them. Out: at most one span a step, a
chunk of the patch at the head; when a segment is complete, its record goes into the memory bank.

A segment attends to the header (the sink), to the newest segments of its own camera within the
read window, and causally to itself; never to notes, questions or answers. So what is stored
depends on the video alone.

A patch may be read ahead: frames that do not fill it yet, as a question would end it now. When
they do become a patch it is there already; otherwise it is taken back before the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tww_ros.config import EngineConfig
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.retrieval import KeySummary, SummaryState, summary_layers
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model import prompts
from tww_ros.model.positions import patch_positions, text_positions
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import Span, TokenRun, VisionTokens
from tww_ros.types import Pose
from tww_ros.video.segmentation import SegmentKey


@dataclass(frozen=True)
class PatchItem:
    """One temporal patch, encoded.

    time_s counts from zero_ns, the start of its epoch; pushed_s is this machine's clock. picture:
    small, of a segment's first frame, if it is to be kept. keep: bool [V], the vision tokens that
    tell something new; None = all. ahead: not a patch yet, and perhaps never.
    """

    key: SegmentKey
    time_s: float
    start_ns: int
    end_ns: int
    frames: int
    vision: VisionTokens
    pose: Pose | None
    pushed_s: float
    zero_ns: int = 0
    picture: np.ndarray | None = None
    keep: np.ndarray | None = None
    ahead: bool = False


@dataclass(frozen=True)
class CloseItem:
    """Nothing more comes for this segment."""

    key: SegmentKey
    closed_by: str


@dataclass
class _Reading:
    """A segment that is being read: its view is fixed when it opens."""

    record: SegmentRecord
    view: View
    ahead: _Ahead | None = None


class _Before(NamedTuple):
    """Where a segment stood before a patch."""

    length: int
    end: int
    summary: SummaryState


class _Ahead(NamedTuple):
    """A patch that was read ahead."""

    vision: VisionTokens
    run: TokenRun
    before: _Before


class Reader:
    """Reads patches chunk by chunk. Only the reasoner calls it."""

    def __init__(self, model: StepModel, bank: MemoryBank, config: EngineConfig) -> None:
        self.epoch = 0
        self.sink = model.new_block()
        self._model = model
        self._bank = bank
        self._config = config
        self._open: dict[SegmentKey, _Reading] = {}
        self._next_position: dict[str, int] = {}
        self._orders = 0
        self._item: PatchItem | None = None
        self._run: TokenRun | None = None
        self._read = 0
        self._before: _Before | None = None
        self._vision_marks = [model.encode(mark)
                              for mark in (prompts.VISION_START, prompts.VISION_END)]

    @property
    def busy(self) -> bool:
        """Whether a patch is being read."""
        return self._item is not None

    @property
    def open_segments(self) -> int:
        """Segments that have a patch and are not closed yet."""
        return sum(reading.record.frames > 0 for reading in list(self._open.values()))

    def resume(self, epoch: int, next_order: int) -> None:
        """Go on behind what was read before this start."""
        self.epoch, self._orders = epoch, next_order

    def read_header(self) -> None:
        """Compute the sink, once, before everything else."""
        run = TokenRun.text(self._model.encode(self._model.style.header), 0)
        self._model.step([Span(self.sink, View((), 0, 0), run)])

    def begin(self, item: PatchItem) -> None:
        """Take the next patch; only when not busy. No rows are left of one that was read ahead."""
        reading = self._open.get(item.key) or self._open_segment(item)
        record, known, reading.ahead = reading.record, reading.ahead, None
        if known is not None and known.vision is item.vision:
            self._item, self._run, self._read = item, known.run, len(known.run)
            return
        if known is not None:
            _go_back(record, known.before)
        self._before = _Before(record.block.length, record.block.end, record.summary.state())
        self._run = self._patch_run(item, record.block.end, first=record.frames == 0)
        self._item, self._read = item, 0

    @property
    def rows(self) -> int:
        """Tokens of the patch that are still to be read."""
        return 0 if self._item is None else len(self._run) - self._read

    def span(self, budget: int | None = None) -> Span | None:
        """The next chunk of the patch, `budget` tokens at most, or None when there is none."""
        if self._item is None:
            return None
        reading, chunk = self._open[self._item.key], self._config.step.chunk_tokens
        last = self._read + min(self.rows, chunk, chunk if budget is None else budget)
        return Span(reading.record.block, reading.view, self._run.cut(self._read, last),
                    summary=reading.record.summary)

    def take(self, budget: int) -> list[Span]:
        """What the next step reads, as a job gives it out; nothing when there is no room."""
        span = self.span(budget) if budget > 0 else None
        return [] if span is None else [span]

    def advance(self, tokens: int) -> PatchItem | None:
        """Count a step over `tokens`; the patch when it is now in memory."""
        self._read += tokens
        if self._read < len(self._run):
            return None
        item, reading = self._item, self._open[self._item.key]
        record, run = reading.record, self._run
        self._item = self._run = None
        if item.ahead:
            reading.ahead = _Ahead(item.vision, run, self._before)
            return item
        if record.frames == 0:
            record.start_ns, record.picture = item.start_ns, item.picture
        if item.keep is not None and not self._config.watch.drop_unread:
            record.kept += (_kept(run, item.keep),)
        record.frames += item.frames
        record.end_ns = item.end_ns
        record.tokens = record.block.length
        record.pose = item.pose or record.pose
        return item

    def abandon(self) -> PatchItem | None:
        """Give up the patch at the head after an error; its segment goes on with the next one."""
        if self._item is not None:
            # Half a patch, without its end mark, would stand in memory for good.
            _go_back(self._open[self._item.key].record, self._before)
        item, self._item, self._run = self._item, None, None
        return item

    def close(self, item: CloseItem, on_closed: Callable[[SegmentRecord], None]) -> None:
        """Put a complete segment into the bank; one whose patches all failed is forgotten."""
        reading = self._open.pop(item.key, None)
        if reading is None or reading.record.frames == 0:
            return
        record = reading.record
        if reading.ahead is not None:
            _go_back(record, reading.ahead.before)
        record.closed_by = item.closed_by
        record.awaits_note = self._config.note.enabled
        # Sealing copies; without room for the copy the block is kept as it is.
        with contextlib.suppress(RuntimeError):
            record.block.seal()
        self._next_position[record.camera] = record.block.end
        self._bank.add(record)
        on_closed(record)

    def _open_segment(self, item: PatchItem) -> _Reading:
        if item.key.epoch != self.epoch:
            self.epoch = item.key.epoch
            self._next_position.clear()
        start = self._next_position.get(item.key.camera, self.sink.end)
        order = self._orders
        self._orders += 1
        record = SegmentRecord(id=order, order=order, camera=item.key.camera, epoch=item.key.epoch,
                               start_ns=item.start_ns, end_ns=item.end_ns,
                               block=self._model.new_block(start), pose=item.pose,
                               zero_ns=item.zero_ns,
                               summary=KeySummary(summary_layers(
                                   self._model.block_shape.layers)))
        before = self._bank.before(record, self._config.memory.read_window_tokens)
        # Stored positions follow the stream for ever; a sink left behind by the window is seen
        # right before it.
        view = lay_out([Entry(self.sink, 'source'), *before], 'continuous').anchored(start)
        reading = self._open[item.key] = _Reading(record, view)
        return reading

    def _patch_run(self, item: PatchItem, start: int, first: bool) -> TokenRun:
        """`<12.5 seconds>`, vision start, vision tokens, vision end: the stock layout."""
        vision = item.vision
        text = prompts.timestamp(item.time_s)
        if first and self._config.watch.label_cameras:
            text = prompts.camera_label(item.key.camera) + text
        head = self._model.encode(text) + self._vision_marks[0]
        patch, after = patch_positions(vision.rows, vision.columns, start + len(head))
        tokens, deepstack = vision.tokens, vision.deepstack
        if item.keep is not None and self._config.watch.drop_unread:
            # What is left stands where it would stand among all.
            chosen = torch.from_numpy(item.keep).to(tokens.device)
            patch, tokens = patch[:, item.keep], tokens[chosen]
            deepstack = tuple(level[chosen] for level in deepstack)
        count = patch.shape[1]
        tail = self._vision_marks[1]
        positions = np.concatenate((text_positions(len(head), start), patch,
                                    text_positions(len(tail), after)), axis=1)
        visual = np.zeros(positions.shape[1], dtype=bool)
        visual[len(head):len(head) + count] = True
        ids = (*head, *[self._model.video_pad_id] * count, *tail)
        return TokenRun(ids, positions, after + len(tail), visual, tokens, deepstack)


def _kept(run: TokenRun, keep: np.ndarray) -> np.ndarray:
    """bool [T]: the tokens of a patch to keep; text is always kept."""
    kept = np.ones(len(run), dtype=bool)
    kept[run.visual] = keep
    return kept


def _go_back(record: SegmentRecord, before: _Before) -> None:
    """Undo a patch, or as much of it as was read."""
    record.block.commit(before.length - record.block.length, before.end)
    record.summary.restore(before.summary)
