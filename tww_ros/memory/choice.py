"""Which segments a question sees when not all fit: the newest, and what the question is about.

In: records, newest first, the scope of the question, a budget of tokens. Out: Residents, in no
particular order. The budget is spent from left to right:

    ├── newest, `recent_tokens` ──┼── found, best first ──┼── the newest again ──┤ tokens

The first of the newest that does not fit ends them, so that what is seen has no holes; of what was
found each one counts by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from tww_ros.memory.notes import Resident, Scope
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.view import Entry


def choose_segments(newest_first: Iterable[SegmentRecord], scope: Scope, *, tokens: int,
                    recent_tokens: int | None, found: Iterable[SegmentRecord],
                    tiers: Collection[str]) -> list[Resident]:
    """recent_tokens: None leaves no room for what was found. tiers: where blocks are taken from;
    one that is not attended to there has entry None."""
    recent = iter(in_scope(newest_first, scope))
    left, chosen = tokens, {}
    limit = 0 if recent_tokens is None else max(0, tokens - recent_tokens)
    waiting = None
    for record in recent:
        beyond = left - record.kv_tokens
        if beyond < 0 or (chosen and beyond < limit):
            waiting = record
            break
        left -= record.kv_tokens
        chosen[record.id] = _resident(record)
    for record in found if limit else ():
        if (record.id not in chosen and record.tier in tiers and record.kv_tokens <= left
                and scope.holds(record)):
            left -= record.kv_tokens
            chosen[record.id] = _resident(record)
    while waiting is not None:
        if waiting.id not in chosen:
            left -= waiting.kv_tokens
            if left < 0:
                break
            chosen[waiting.id] = _resident(waiting)
        waiting = next(recent, None)
    return list(chosen.values())


def in_scope(newest_first: Iterable[SegmentRecord], scope: Scope) -> Iterator[SegmentRecord]:
    """Those that the question may see."""
    for record in newest_first:
        if record.epoch < scope.epoch:
            return
        if scope.holds(record):
            yield record


def _resident(record: SegmentRecord) -> Resident:
    entry = None if record.block is None else Entry(record.block, 'source', record.id)
    return Resident((record.order, 0), entry, record)
