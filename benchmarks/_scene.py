"""A scene for measuring steps: answers, a note and a patch being read, over a full view.

In: a loaded model. Out: spans of a step that can be run again and again. The view is as large as
the engine's settings allow, laid out as an engine lays it out: a header, notes of NOTE_TOKENS
tokens, each of which was written at another place than it stands now, segments of one patch. Words
are random, and so are the segments' tokens; keys are computed by the model. The patch is a real
picture's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _camera import tabletop
from _models import Loaded, synchronize
from _peers import EMPTY, patch_run

from tww_ros.memory.block import KVBlock
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.run import Span, TokenRun
from tww_ros.video.pixels import to_pixels

NOTE_TOKENS = 20
QUESTION_TOKENS = 24
TEXT_TOKEN = 40
# Answers that a packed step may hold beside a note and a patch.
ANSWERS = (1, 4, 8)


@dataclass(frozen=True)
class Writer:
    """One answer or note under way: the next token goes to `block`."""

    block: KVBlock
    view: View
    mass: torch.Tensor | None

    def span(self) -> Span:
        """Its next token; undone with `back`."""
        run = TokenRun.text((TEXT_TOKEN,), self.block.end)
        return Span(self.block, self.view, run, 'last', self.mass)


@dataclass(frozen=True)
class Scene:
    """What is at work at once: answers, a note, a patch being read."""

    model: VideoLanguageModel
    answers: list[Writer]
    note: Writer
    patch: Span

    def spans(self, answers: int) -> list[Span]:
        """One step's work."""
        return [*(writer.span() for writer in self.answers[:answers]), self.note.span(),
                self.patch]

    def run(self, spans: Sequence[Span]) -> float:
        """Seconds of one step with its greedy choice; afterwards everything is as before."""
        before = [(span.block, span.block.length, span.block.end) for span in spans]
        started_s = time.perf_counter()
        for logits in self.model.step(spans):
            if logits is not None:
                int(logits[-1].argmax())
        synchronize(self.model.device)
        seconds = time.perf_counter() - started_s
        for block, length, end in before:
            block.commit(length - block.length, end)
        return seconds


def build(loaded: Loaded, segment_s: float) -> Scene:
    """A full view, eight answers over it, a note, a patch; a camera of one frame a second."""
    model, config = loaded.model, loaded.live(1.0, segment_s)
    memory, watch = config.memory, config.watch
    picture = tabletop(loaded.picture_px, 2)
    vision = model.encode_patch(to_pixels(
        picture, patch_size=model.patch_size, merge_size=model.merge_size,
        temporal_patch_size=model.temporal_patch_size, min_pixels=watch.min_pixels,
        max_pixels=watch.max_pixels))
    sink = written(model, 4, 0)
    patch = patch_run(model, vision, 1_000.0, sink.end)
    segments, start = [], sink.end
    for _ in range(max(1, memory.resident_tokens // len(patch))):
        segments.append(written(model, len(patch), start))
        start = segments[-1].end
    # Each was written where it stood then, so each has its own place in today's view.
    notes = [written(model, NOTE_TOKENS, NOTE_TOKENS * number)
             for number in range(memory.resident_note_tokens // NOTE_TOKENS)]
    entries = [Entry(sink, 'source'),
               *(Entry(note, 'target', number) for number, note in enumerate(notes)),
               *(Entry(block, 'source', number) for number, block in enumerate(segments))]
    answers = []
    for _ in range(max(ANSWERS)):
        base = lay_out(entries, model.scheme)
        branch = model.new_block(base.start('source'), capacity=QUESTION_TOKENS)
        prefill(model, branch, base, QUESTION_TOKENS)
        answers.append(writer(model, [*entries, Entry(branch, 'source')], evidence=True))
    window = segments[-max(1, memory.read_window_tokens // len(patch)):]
    view = lay_out([Entry(sink, 'source'), *(Entry(block, 'source') for block in window)],
                   'continuous').anchored(start)
    patch = patch_run(model, vision, 1_000.0, start)
    reading = Span(model.new_block(start, capacity=len(patch)), view, patch)
    return Scene(model, answers, writer(model, entries[:-len(segments)] + entries[-1:]), reading)


def writer(model: VideoLanguageModel, entries: Sequence[Entry], evidence: bool = False) -> Writer:
    """Somebody who has begun to write behind a view."""
    view = lay_out(entries, model.scheme)
    block = model.new_block(view.start('target'), capacity=2 * NOTE_TOKENS)
    prefill(model, block, view, 8)
    mass = torch.zeros(len(view.parts) + 1, device=model.device) if evidence else None
    return Writer(block, view, mass)


def written(model: VideoLanguageModel, tokens: int, start: int) -> KVBlock:
    """A block of text that stands at `start` and sees itself only."""
    block = model.new_block(start, capacity=tokens)
    prefill(model, block, EMPTY, tokens)
    block.seal()
    return block


def prefill(model: VideoLanguageModel, block: KVBlock, view: View, tokens: int) -> None:
    """Random words behind a block."""
    ids = torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(block.start))
    model.step([Span(block, view, TokenRun.text(ids.tolist(), block.end))])
