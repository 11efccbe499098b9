"""Segment record: everything that memory knows about one segment.

It only holds; the bank changes it under its lock, and the reader fills it while the segment is
open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tww_ros.memory.block import KVBlock
from tww_ros.memory.notes import Told
from tww_ros.memory.quantization import Block
from tww_ros.memory.retrieval import KeySummary
from tww_ros.memory.tiers import NOTE
from tww_ros.types import Note, Pose, SegmentInfo


@dataclass(eq=False, slots=True)
class SegmentRecord:
    """One segment in the bank.

    `block` can be attended to; it is None in the later tiers: there `away` holds it (host), or the
    folder (disk), or nothing. told: its note, if that is one to attend to.
    """

    id: int
    order: int
    camera: str
    epoch: int
    start_ns: int
    end_ns: int
    frames: int = 0
    tokens: int = 0
    closed_by: str = ''
    block: Block | None = None
    note: Note | None = None
    told: Told | None = None
    pose: Pose | None = None
    away: Block | None = None
    summary: KeySummary | None = None
    # Of its first frame, until it is written. zero_ns: first stamp of its epoch.
    picture: np.ndarray | None = None
    zero_ns: int = 0
    # bool [T] of each patch: what stays when the segment is noted and no longer recent; none = all
    kept: tuple[np.ndarray, ...] = ()
    awaits_note: bool = False
    tier: str = NOTE
    kv_bytes: int = 0
    kv_tokens: int = 0
    # When it came, in changes of the bank; a question sees what came before it.
    added: int = 0

    @property
    def note_block(self) -> KVBlock | None:
        """The keys of its note, if they are held."""
        return self.told.block if self.told is not None else None

    @property
    def nbytes(self) -> int:
        """Bytes of KV held for this segment (wherever it is) and its note."""
        return self.kv_bytes + (self.note_block.nbytes if self.note_block is not None else 0)

    def info(self) -> SegmentInfo:
        """The record as users see it."""
        return SegmentInfo(self.id, self.order, self.camera, self.epoch, self.start_ns,
                           self.end_ns, self.frames, self.tokens, self.nbytes, self.tier,
                           self.closed_by, self.note.text if self.note else '', self.pose)


def thinned(block: Block, kept: Sequence[np.ndarray]) -> Block:
    """The block without the tokens that tell nothing new; one that was thinned or quantized before
    stays as it is. kept: bool [T] of each patch."""
    if not kept or not hasattr(block, 'keep'):
        return block
    mask = np.concatenate(kept)
    if len(mask) != block.length or mask.all():
        return block
    return block.keep(torch.from_numpy(mask))
