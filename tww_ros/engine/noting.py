"""Noting: one note about one closed segment, or one episode about many notes, as a step program.

In: the segment, and what its note may see: segments up to this one, notes before it. Out: the note
in the memory bank. A note under way is visible to nobody; it counts from the moment it is
finished.

When the notes are more than fit into a view, the oldest are summed up: an episode sees only the
notes that it is about, and takes their place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tww_ros.config import EngineConfig
from tww_ros.engine.job import Program, generate, prefill
from tww_ros.engine.recall import read_again
from tww_ros.errors import ModelError
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.block import KVBlock
from tww_ros.memory.notes import Resident, Told, with_block
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.types import Note


def write_note(model: StepModel, config: EngineConfig, bank: MemoryBank, record: SegmentRecord,
               sink: Entry, seen: list[Resident],
               on_note: Callable[[Note], None]) -> Program[None]:
    """Write the note of `record`; `seen`: its segments and the notes before it, oldest first."""
    started_s = time.monotonic()
    view = lay_out([sink, *(item.entry for item in seen)], model.scheme)
    block, ids, finish_reason = yield from _write(model, config, view, model.style.note_prefix,
                                                  config.note.max_new_tokens)
    note = Note(record.id, record.camera, record.start_ns, record.end_ns,
                model.style.clean_note(model.decode(ids)), len(ids), finish_reason,
                time.monotonic() - started_s)
    bank.attach_note(record, note, None if model.style.says_nothing(note.text) else block)
    on_note(note)


def write_episode(model: StepModel, config: EngineConfig, bank: MemoryBank,
                  parts: Sequence[Told], sink: Entry,
                  on_episode: Callable[[Note, int], None]) -> Program[None]:
    """Sum up `parts`, oldest first. on_episode: the episode, id of its last segment."""
    started_s = time.monotonic()
    items = [with_block(told, told.block) for told in parts]
    yield from read_again(model, config, bank, sink, items)
    view = lay_out([sink, *(item.entry for item in items)], model.scheme)
    block, ids, finish_reason = yield from _write(model, config, view, model.style.episode_prefix,
                                                  config.note.episode_max_new_tokens)
    length = sum(part.length for part in parts)
    if not ids or block.length >= length:
        raise ModelError(f'an episode about {length} tokens of notes has {block.length} tokens '
                         f'({len(ids)} written); the notes stay as they are')
    first, last = next(parts[0].notes), parts[-1].record
    episode = Note(first.record.id, last.camera, min(part.note.start_ns for part in parts),
                   max(part.note.end_ns for part in parts),
                   model.style.clean_note(model.decode(ids)), len(ids), finish_reason,
                   time.monotonic() - started_s)
    if bank.attach_episode(parts, episode, block):
        on_episode(episode, last.id)


def _write(model: StepModel, config: EngineConfig, view: View, prefix: str,
           max_new_tokens: int) -> Program[tuple[KVBlock, list[int], str]]:
    """Write behind `prefix` until it ends; the block, closed, and what was written."""
    style, chunk = model.style, config.step.chunk_tokens
    start, closer = model.encode(prefix), model.encode(style.note_closer)
    block = model.new_block(view.start('target'),
                            capacity=len(start) + max_new_tokens + len(closer))
    logits = yield from prefill(block, view, start, chunk)
    ids, finish_reason = yield from generate(block, view, logits, ends=model.note_ends,
                                             max_new_tokens=max_new_tokens)
    if finish_reason == 'length':
        closer = [ids[-1], *closer]
    yield from prefill(block, view, closer, chunk, logits='none')
    block.seal()
    return block, ids, finish_reason
