"""Peers: what one would do with the same model without a memory of segments.

    reprefill     keeps the last N frames as pictures, and computes all of them for each question
    recent        the same with 4 frames
    interleaved   one stream for everything, R1 C1 R2 C2 … Q A: every token of every segment and
                  note stays; while a note is written nothing is watched

All call the same verbs of the same `VideoLanguageModel` as the engine (so: same weights, same
kernels), with one growing KV block in one chat that is laid out as the stock processor does it;
test/test_benchmarks.py compares them with stock `generate()`. They run in one thread and have the
machine for themselves.

In `interleaved` things come in their order: a question closes the open segment (as it does in the
engine), the segment's note follows it, then comes the question. With `question_first` it waits
only for the note under way, and for the frames that came before it: a peer that leaves its layout
for the sake of its first token, and writes the note later. The question and its answer leave the
stream afterwards. A memory of N segments is not watched but `filled` with random keys and values
(SYNTHETIC in a metric's name): how long attention takes depends on how many there are, not on what
they are.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _camera import Film

from tww_ros import Engine
from tww_ros.config import WatchConfig
from tww_ros.memory.view import View
from tww_ros.model import prompts
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.positions import patch_positions, text_positions
from tww_ros.model.run import Span, TokenRun, VisionTokens
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.pixels import to_pixels

SYNTHETIC = 'interleaved_synthetic_fill'
QUESTION_FIRST = 'interleaved_question_first_synthetic_fill'
REPREFILL_FRAMES, RECENT_FRAMES = 64, 4
REPREFILL, RECENT = f'reprefill_{REPREFILL_FRAMES}_frames', f'recent_{RECENT_FRAMES}_frames'
# Of the camera that runs meanwhile.
PEER_FPS = 10.0
QUESTION = 'Where is the red ball now?'
# Tokens of one step of a prefill: attention's scores of more would not fit.
CHUNK = 1_024
EMPTY = View((), 0, 0)


@dataclass(frozen=True)
class Answered:
    """first_token_s: from the question to the first token. ids: without the end mark."""

    first_token_s: float
    ids: tuple[int, ...]


class OneStream:
    """One chat in one block: header, patches, texts, in the order in which they come."""

    def __init__(self, model: VideoLanguageModel, watch: WatchConfig, capacity: int = 0) -> None:
        self.model = model
        self.block = model.new_block(capacity=capacity)
        self._watch = watch
        self.read(model.encode(model.style.header))

    def encode(self, frames: Sequence[Frame]) -> VisionTokens:
        """One temporal patch through the vision tower."""
        model, watch = self.model, self._watch
        return model.encode_patch(to_pixels(
            [frame.image for frame in frames], patch_size=model.patch_size,
            merge_size=model.merge_size, temporal_patch_size=model.temporal_patch_size,
            min_pixels=watch.min_pixels, max_pixels=watch.max_pixels))

    def watch(self, frames: Sequence[Frame], zero_ns: int) -> None:
        """Encode and read one temporal patch; its time counts from zero_ns."""
        stamps_ns = [frame.stamp_ns - zero_ns for frame in frames]
        time_s = sum(stamps_ns) / len(stamps_ns) / NS_PER_S
        self._append(patch_run(self.model, self.encode(frames), time_s, self.block.end))

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read text; the logits behind it, [1, vocab]."""
        return self._append(TokenRun.text(tuple(ids), self.block.end))

    def write(self, logits: torch.Tensor, count: int,
              ends: frozenset[int] = frozenset()) -> list[int]:
        """Write up to `count` tokens, greedily; the last one is not read."""
        ids: list[int] = []
        while True:
            token = int(logits[-1].argmax())
            if token in ends:
                return ids
            ids.append(token)
            if len(ids) == count:
                return ids
            logits = self.read([token])

    def ask(self, text: str, max_new_tokens: int, asked_s: float | None = None) -> Answered:
        """Answer, and forget the question and the answer; asked_s: when it was asked, if not
        now."""
        asked_s = time.monotonic() if asked_s is None else asked_s
        length, end = self.block.length, self.block.end
        style = self.model.style
        logits = self.read([*self.model.encode_user(style.question(text, ())),
                            *self.model.encode(style.question_tail + style.answer_prefix)])
        first = self.write(logits, 1, self.model.answer_ends)
        first_token_s = time.monotonic() - asked_s
        ids = first
        if first and max_new_tokens > 1:
            ids = first + self.write(self.read(first), max_new_tokens - 1, self.model.answer_ends)
        self.back(length, end)
        return Answered(first_token_s, tuple(ids))

    def fill(self, tokens: int, seed: int = 0) -> None:
        """Random keys and values for `tokens` tokens that nobody read."""
        block = self.block
        block.reserve(tokens)
        generator = torch.Generator(block.keys.device).manual_seed(seed)
        for half in (block.keys, block.values):
            for layer in half:
                layer[:, block.length:block.length + tokens].normal_(generator=generator)
        block.commit(tokens, block.end + tokens)

    def back(self, length: int, end: int) -> None:
        """Forget all that came behind this length."""
        self.block.commit(length - self.block.length, end)

    def _append(self, run: TokenRun) -> torch.Tensor:
        logits = None
        for first in range(0, len(run), CHUNK):
            part = run.cut(first, first + CHUNK)
            last = first + CHUNK >= len(run)
            logits, = self.model.step([Span(self.block, EMPTY, part, 'last' if last else 'none')])
        return logits


def patch_run(model: VideoLanguageModel, vision: VisionTokens, time_s: float,
              start: int) -> TokenRun:
    """`<12.5 seconds>`, vision start, vision tokens, vision end."""
    head = model.encode(prompts.timestamp(time_s) + prompts.VISION_START)
    tail = model.encode(prompts.VISION_END)
    patch, after = patch_positions(vision.rows, vision.columns, start + len(head))
    count = patch.shape[1]
    positions = np.concatenate((text_positions(len(head), start), patch,
                                text_positions(len(tail), after)), axis=1)
    visual = np.zeros(positions.shape[1], dtype=bool)
    visual[len(head):len(head) + count] = True
    return TokenRun((*head, *[model.video_pad_id] * count, *tail), positions, after + len(tail),
                    visual, vision.tokens, vision.deepstack)


def pairs(frames: Sequence[Frame]) -> list[Sequence[Frame]]:
    """Two by two; an odd last one stands alone."""
    return [frames[first:first + 2] for first in range(0, len(frames), 2)]


class Reprefill:
    """The last `frames` frames; `recent` is this with RECENT_FRAMES."""

    def __init__(self, model: VideoLanguageModel, watch: WatchConfig, frames: int) -> None:
        self._model = model
        self._watch = watch
        self._kept: deque[Frame] = deque(maxlen=frames)

    def see(self, frame: Frame) -> None:
        """Keep a frame."""
        self._kept.append(frame)

    def ask(self, text: str, max_new_tokens: int = 1) -> Answered:
        """Compute everything and answer; the clip begins at its first frame."""
        asked_s = time.monotonic()
        frames = list(self._kept)
        stream = OneStream(self._model, self._watch)
        for patch in pairs(frames):
            stream.watch(patch, frames[0].stamp_ns)
        return stream.ask(text, max_new_tokens, asked_s)


class Interleaved:
    """One thread that watches, notes and answers in turn; a camera runs meanwhile."""

    def __init__(self, model: VideoLanguageModel, watch: WatchConfig, *, fps: float,
                 note_tokens: int, filled: int) -> None:
        """note_tokens: of each note. filled: tokens of the memory before."""
        self.stream = OneStream(model, watch, capacity=filled + 8_192)
        self.stream.fill(filled)
        self._model = model
        self._fps = fps
        self._segment_s = watch.segment_s
        self._note_tokens = note_tokens

    def note(self) -> None:
        """Write a note about what was last seen."""
        style, encode = self._model.style, self._model.encode
        logits = self.stream.read(encode(style.note_prefix))
        ids = self.stream.write(logits, self._note_tokens)
        self.stream.read([ids[-1], *encode(style.note_closer)])

    def first_token_s(self, film: Film, text: str, after_s: float,
                      question_first: bool = False) -> float:
        """Watch the camera from now on, and answer a question that comes `after_s` from now."""
        length, end = self.stream.block.length, self.stream.block.end
        frames = [film.next(1 / self._fps) for _ in range(int(after_s * self._fps) + 1)]
        zero_ns, in_segment = frames[0].stamp_ns, 0
        start_s = time.monotonic()
        asked_s = start_s + after_s
        for number, patch in enumerate(pairs(frames)):
            arrived_s = start_s + (2 * number + len(patch) - 1) / self._fps
            # The question closes the segment: an odd last frame is read by itself.
            time.sleep(max(0.0, (asked_s if len(patch) == 1 else arrived_s) - time.monotonic()))
            in_segment += len(patch)
            self.stream.watch(patch, zero_ns)
            late = question_first and time.monotonic() >= asked_s
            if in_segment >= self._segment_s * self._fps and not late:
                self.note()
                in_segment = 0
        time.sleep(max(0.0, asked_s - time.monotonic()))
        if in_segment and not question_first:
            self.note()
        answered = self.stream.ask(text, 1, asked_s)
        self.stream.back(length, end)
        return answered.first_token_s


def peers_beside(engine: Engine, model: VideoLanguageModel, film: Film
                 ) -> tuple[dict[str, Reprefill], Interleaved]:
    """The peers in an engine's situation: as much was seen and noted, in notes as long."""
    watch, style = engine.config.watch, model.style
    notes = [note.tokens for note in engine.memory.notes()]
    around = len(model.encode(style.note_prefix)) + len(model.encode(style.note_closer))
    filled = (sum(segment.tokens for segment in engine.memory.segments())
              + sum(notes) + len(notes) * around)
    pictures = {REPREFILL: Reprefill(model, watch, REPREFILL_FRAMES),
                RECENT: Reprefill(model, watch, RECENT_FRAMES)}
    for _ in range(REPREFILL_FRAMES):
        frame = film.next(1 / PEER_FPS)
        for peer in pictures.values():
            peer.see(frame)
    interleaved = Interleaved(model, watch, fps=PEER_FPS, filled=filled,
                              note_tokens=max(1, round(sum(notes) / max(1, len(notes)))))
    return pictures, interleaved


def take_quicker_threads(peer: Reprefill) -> int:
    """On the CPU: one thread or all cores, whichever lets `peer` answer sooner; sets and tells it.
    """
    # Few frames: with more threads than free cores much work would take very long.
    seconds = {}
    for threads in (1, len(os.sched_getaffinity(0))):
        torch.set_num_threads(threads)
        peer.ask(QUESTION)
        seconds[threads] = peer.ask(QUESTION).first_token_s
    quicker = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(quicker)
    return quicker
