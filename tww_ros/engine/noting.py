"""Noting: one note about one closed segment, as a step program.

In: the segment, and what its note may see: segments up to this one, notes before it. Out: the note
in the memory bank. A note under way is visible to nobody; it counts from the moment it is
finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tww_ros.config import EngineConfig
from tww_ros.engine.job import Program, generate, prefill
from tww_ros.memory.bank import MemoryBank, Resident, SegmentRecord
from tww_ros.memory.view import Entry, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.types import Note


def write_note(model: StepModel, config: EngineConfig, bank: MemoryBank, record: SegmentRecord,
               sink: Entry, seen: list[Resident],
               on_note: Callable[[Note], None]) -> Program[None]:
    """Write the note of `record`; `seen`: its segments and the notes before it, oldest first."""
    style, chunk = model.style, config.step.chunk_tokens
    started_s = time.monotonic()
    view = lay_out([sink, *(item.entry for item in seen)], model.scheme)
    prefix, closer = model.encode(style.note_prefix), model.encode(style.note_closer)
    capacity = len(prefix) + config.note.max_new_tokens + len(closer)
    block = model.new_block(view.start('target'), capacity=capacity)
    logits = yield from prefill(block, view, prefix, chunk)
    ids, finish_reason = yield from generate(block, view, logits, ends=model.note_ends,
                                             max_new_tokens=config.note.max_new_tokens)
    if finish_reason == 'length':
        closer = [ids[-1], *closer]
    yield from prefill(block, view, closer, chunk, logits='none')
    block.seal()
    note = Note(record.id, record.camera, record.start_ns, record.end_ns,
                style.clean_note(model.decode(ids)), len(ids), finish_reason,
                time.monotonic() - started_s)
    bank.attach_note(record, note, None if style.says_nothing(note.text) else block)
    on_note(note)
