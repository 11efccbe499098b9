"""Tiers: where the KV blocks of segments are, how many bytes each tier holds, and what moves next.

In: records as they come, budgets in bytes. Out: the next move that the budgets ask for, oldest
segment first. It moves nothing itself and holds no lock; the bank does both.

    device      full precision, where the model runs: recent segments
    quantized   fewer bits, where the model runs
    host        as it came, in the host's memory
    disk        in the store's folder; nothing is held
    note        the video's keys are gone, the words are not

A tier without a budget is left out. Ages are in order across tiers, because only a tier's oldest
block moves, and only to a later tier.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tww_ros.memory.quantization import Block
    from tww_ros.memory.record import SegmentRecord

DEVICE, QUANTIZED, HOST, DISK, NOTE = TIERS = ('device', 'quantized', 'host', 'disk', 'note')
# Those whose blocks can be attended to where they are.
ATTENDED = (DEVICE, QUANTIZED)


class Move(NamedTuple):
    """One block to bring from a tier to a later one."""

    record: SegmentRecord
    source: str
    target: str


class Tiers:
    """Blocks of segments by tier, oldest first. budgets: bytes, of the tiers in use but `note`."""

    def __init__(self, budgets: Mapping[str, int]) -> None:
        self.budgets = {tier: budgets[tier] for tier in TIERS if tier in budgets}
        self.used = dict.fromkeys(self.budgets, 0)
        self.tokens = dict.fromkeys(self.budgets, 0)
        self._held: dict[str, OrderedDict[int, SegmentRecord]] = {
            tier: OrderedDict() for tier in self.budgets}

    def put(self, record: SegmentRecord, tier: str, nbytes: int) -> None:
        """Count a record's block in a tier, as its newest."""
        record.tier, record.kv_bytes = tier, nbytes
        if tier != NOTE:
            self._held[tier][record.id] = record
            self.used[tier] += nbytes
            self.tokens[tier] += record.kv_tokens

    def take(self, record: SegmentRecord) -> None:
        """Count it no more."""
        if record.tier != NOTE:
            del self._held[record.tier][record.id]
            self.used[record.tier] -= record.kv_bytes
            self.tokens[record.tier] -= record.kv_tokens
            record.tier, record.kv_bytes = NOTE, 0

    def replace(self, record: SegmentRecord, block: Block) -> None:
        """Put a smaller block in the place of a record's."""
        self.used[record.tier] += block.nbytes - record.kv_bytes
        self.tokens[record.tier] += block.length - record.kv_tokens
        record.block, record.kv_bytes, record.kv_tokens = block, block.nbytes, block.length

    def newest_first(self, tiers: tuple[str, ...]) -> Iterator[SegmentRecord]:
        """The records of these tiers."""
        return itertools.chain.from_iterable(
            reversed(self._held[tier].values()) for tier in TIERS
            if tier in tiers and tier in self._held)

    def next_move(self, newest: SegmentRecord | None, extra_bytes: Mapping[str, int],
                  slack_bytes: int = 0) -> Move | None:
        """What must go, or None when every tier is within its budget and `slack_bytes`.

        newest: stays where it is. extra_bytes: what else counts in a tier (notes, on the device).
        """
        for tier, budget in self.budgets.items():
            if self.used[tier] + extra_bytes.get(tier, 0) > budget + slack_bytes:
                record = next((r for r in self._held[tier].values() if r is not newest), None)
                if record is not None:
                    return Move(record, tier, self.after(tier))
        return None

    def after(self, tier: str) -> str:
        """The next tier in use."""
        later = TIERS[TIERS.index(tier) + 1:]
        return next(name for name in later if name in self.budgets or name == NOTE)
