"""Recall: what a question gets to see of memory, as a step program.

In: the question and its scope (memory as it was when it was asked). Out: entries in time order,
within the budgets. When everything fits, that is all of it; otherwise the newest and what the
question is about:

    words of the question ──▶ index of notes ──┐
    its queries, one step ──▶ mean keys ───────┴─▶ ranking ─▶ fetch what is away ─▶ read lost notes

A note whose keys are gone is read again from its words, behind the header alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tww_ros.config import EngineConfig
from tww_ros.engine.job import Program
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.notes import Resident, Scope, with_block
from tww_ros.memory.quantization import Block
from tww_ros.memory.retrieval import QueryTap, fuse, summary_layers
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.protocol import StepModel
from tww_ros.model.run import Span, TokenRun
from tww_ros.types import Note

# Rankings are longer than what is taken: two short ones may have nothing in common.
RANKED = 4
Fetch = Callable[[Sequence[Resident]], 'Future[list[Block | None]]']
Search = Callable[[str, Scope, int], list[int]]


def recall(model: StepModel, config: EngineConfig, bank: MemoryBank, sink: Entry, scope: Scope,
           question: str, ids: Sequence[int], search: Search,
           fetch: Fetch) -> Program[list[Resident]]:
    """question: its words and those that it hangs on. ids: tokens of the question branch.

    search: (words, scope, limit) → segment ids. fetch: brings blocks to the device.
    """
    memory = config.memory
    found: list[int] = []
    more_segments, more_notes = bank.exceeds(memory.resident_tokens, memory.resident_note_tokens)
    more_segments &= memory.recent_tokens < memory.resident_tokens
    more_notes &= memory.resident_note_tokens > 0
    if memory.retrieved_segments and (more_segments or more_notes):
        limit = RANKED * memory.retrieved_segments
        rankings = [search(question, scope, limit)]
        if more_segments:
            tap = QueryTap(summary_layers(model.block_shape.layers))
            yield [_probe(model, [sink], ids, tap)]
            rankings.append(bank.match(tap, scope, limit))
        found = fuse(rankings, memory.retrieved_segments)
    seen = bank.resident(scope, tokens=memory.resident_tokens,
                         note_tokens=memory.resident_note_tokens,
                         recent_tokens=memory.recent_tokens, found=found, fetch=True)
    return (yield from brought(model, bank, sink, seen, fetch))


def rehearsal(model: StepModel, config: EngineConfig, bank: MemoryBank, sink: Entry,
              epoch: int) -> Span | None:
    """A step over what a question would look at now, thrown away: it touches each block, and joins
    those that are joined. None when there is nothing at hand."""
    memory = config.memory
    seen = bank.resident(Scope(epoch), tokens=memory.resident_tokens,
                         note_tokens=memory.resident_note_tokens,
                         recent_tokens=memory.recent_tokens)
    entries = [item.entry for item in seen if item.entry is not None]
    if not entries:
        return None
    return _probe(model, [sink, *entries], model.encode(model.style.question('', ())))


def brought(model: StepModel, bank: MemoryBank, sink: Entry, seen: list[Resident],
            fetch: Fetch) -> Program[list[Resident]]:
    """With what is away brought to the device, and without what is gone."""
    away = [item for item in seen if item.entry is None]
    if away:
        blocks = yield fetch(away)
        blocks = dict(zip(map(id, away), blocks, strict=True))
        seen = [_filled(item, blocks[id(item)]) if item.entry is None else item for item in seen]
        yield from read_again(model, bank, sink, seen)
    return [item for item in seen if item.entry is not None]


def _probe(model: StepModel, entries: list[Entry], ids: Sequence[int],
           tap: QueryTap | None = None) -> Span:
    """The question over these, whose queries the tap takes; its keys are thrown away."""
    view = lay_out(entries, model.scheme)
    block = model.new_block(view.start('source'), capacity=len(ids))
    return Span(block, view, TokenRun.text(ids, block.end), queries=tap)


def _filled(item: Resident, block: Block | None) -> Resident:
    if block is None:
        return item
    if item.told is not None:
        return with_block(item.told, block)
    return item._replace(entry=Entry(block, 'source', item.record.id))


def read_again(model: StepModel, bank: MemoryBank, sink: Entry,
               seen: list[Resident]) -> Program[None]:
    """Compute the keys of notes that have none."""
    view = lay_out([sink], model.scheme)
    lost = [index for index, item in enumerate(seen)
            if item.entry is None and item.told is not None]
    if not lost:
        return
    spans = [_note_span(model, view, note_ids(model, seen[index].told.note)) for index in lost]
    yield spans
    for index, span in zip(lost, spans, strict=True):
        bank.restore_note(seen[index].told, span.block)
        seen[index] = _filled(seen[index], span.block)


def _note_span(model: StepModel, view: View, ids: Sequence[int]) -> Span:
    block = model.new_block(view.start('target'), capacity=len(ids))
    return Span(block, view, TokenRun.text(ids, block.end))


def note_ids(model: StepModel, note: Note) -> list[int]:
    """Tokens of a note as it stands in memory: prefix, words, closer."""
    style = model.style
    return [*model.encode(style.note_prefix), *model.encode_user(style.note_text(note.text)),
            *model.encode(style.note_closer)]
