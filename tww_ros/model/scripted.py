"""ScriptedModel: a substitute for tests that need no weights: it says what it is told to say.

It has the real interface (`model.protocol.StepModel`): byte tokenizer, spans, KV blocks, logits,
marks; only the words are given. So an engine, a node or a planner can be tested for what it does
with an answer, how it streams, cancels and times out, in a process without a network or a GPU.

    ScriptedModel(answer='on the bench')                          every question gets this answer
    ScriptedModel(answer=lambda question: question.upper())       made from the question's text
    ScriptedModel(note='a red cup appears', step_delay_s=0.01)    every step takes at least 10 ms
    ScriptedModel(note=lambda number: f'cup {number} appears')    the first note has number 0
    ScriptedModel(before_step=lambda spans: gate.wait(5))         every step waits for a gate
    ScriptedModel(step_costs=StepCosts((1, 64), (0.01, 0.02)))    as if steps took so long

`before_step` is called with the spans of each step, on the thread that takes it, before anything
is computed: it may look on, hold the step, or raise to make it fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.view import Scheme
from tww_ros.model import prompts
from tww_ros.model.costs import StepCosts
from tww_ros.model.run import Span, VisionTokens
from tww_ros.model.tiny import VOCABULARY, byte_tokenizer
from tww_ros.video.pixels import Pixels

LIKELY = 10.0


@dataclass
class _Script:
    tokens: list[int]
    written: int = 0


class ScriptedModel:
    """Says `answer` to every question and `note` about every segment."""

    def __init__(self, answer: str | Callable[[str], str] = 'yes',
                 note: str | Callable[[int], str] = 'nothing new',
                 step_delay_s: float = 0.0, positions: Scheme = 'continuous',
                 before_step: Callable[[Sequence[Span]], None] = lambda spans: None,
                 step_costs: StepCosts | None = None) -> None:
        self.name = 'scripted'
        self.scheme = positions
        self.style = prompts.STOCK
        self.quantization = 'none'
        self.fingerprint = 'scripted'
        self.page_bytes = 0
        self.step_costs = step_costs
        self.settings: dict[str, object] = {}
        self.device = torch.device('cpu')
        self.block_shape = BlockShape(1, 1, 2, torch.float32, self.device)
        self.patch_size, self.merge_size, self.temporal_patch_size = 16, 2, 2
        self.steps = 0
        self._answer = answer if callable(answer) else lambda _: answer
        self._note = note if callable(note) else lambda _: note
        self._notes = 0
        self._step_delay_s = step_delay_s
        self._before_step = before_step
        self._tokenizer = byte_tokenizer()
        # Whether special tokens are split is a switch inside the tokenizer, which callers of
        # ask() and the engine's threads would turn under each other.
        self._tokenizing = threading.Lock()
        self.video_pad_id, self._end, text_end = self._tokenizer.convert_tokens_to_ids(
            [prompts.VIDEO_PAD, prompts.IM_END, prompts.END_OF_TEXT])
        self.note_ends = self.answer_ends = frozenset((self._end, text_end))
        self._tail = self.encode(self.style.question_tail)
        self._prompts: WeakKeyDictionary[KVBlock, list[int]] = WeakKeyDictionary()
        self._scripts: WeakKeyDictionary[KVBlock, _Script] = WeakKeyDictionary()

    def describe(self) -> str:
        """One line for logs and status."""
        return 'scripted: says what it is told to say'

    def set_attention(self, backend: str) -> None:
        """There is none."""

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens recognised."""
        with self._tokenizing:
            return self._tokenizer.encode(text, add_special_tokens=False)

    def encode_user(self, text: str) -> list[int]:
        """Token ids, special tokens read as characters."""
        with self._tokenizing:
            return self._tokenizer.encode(text, add_special_tokens=False,
                                          split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True,
                                      clean_up_tokenization_spaces=False)

    def encode_patch(self, pixels: Pixels) -> VisionTokens:
        """As many vision tokens as Qwen3-VL would make."""
        rows, columns = pixels.grid_h // self.merge_size, pixels.grid_w // self.merge_size
        return VisionTokens(torch.zeros(rows * columns, 2), (), rows, columns)

    def new_block(self, start: int = 0, capacity: int = 0) -> KVBlock:
        """An empty KV block, 16 bytes a token."""
        return KVBlock(self.block_shape, start=start, capacity=capacity)

    def step(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """Logits that make greedy decoding write the script."""
        self._before_step(spans)
        if self._step_delay_s:
            time.sleep(self._step_delay_s)
        # First what may fail, so that a failed step has changed nothing, as with the real model.
        for span in spans:
            self._script(span)
        self.steps += 1
        return [self._span(span) for span in spans]

    def _script(self, span: Span) -> None:
        """Ask what is to be said when this span completes a prompt."""
        tail = len(self._tail)
        prompt = [*self._prompts.get(span.block, ()), *span.run.ids]
        if span.logits != 'none' and prompt[-tail:] == self._tail:
            words = self._words(self.decode(prompt[:-tail]))
            self._scripts[span.block] = _Script([*self.encode_user(words), self._end])

    def _span(self, span: Span) -> torch.Tensor | None:
        block, ids = span.block, list(span.run.ids)
        block.reserve(len(ids))
        stored = torch.tensor(ids, dtype=torch.float32)[None, :, None]
        block.write(0, stored, stored)
        block.commit(len(ids), span.run.end)
        prompt = self._prompts.setdefault(block, [])
        prompt += ids
        if span.logits == 'none':
            return None
        if prompt[-len(self._tail):] == self._tail:
            return self._likely(self._scripts[block].tokens[0])[None]
        if not span.view.parts:
            # Behind nothing there is nothing to say.
            return self._likely(self._end)[None]
        # A note goes on in its prompt's block; an answer stands in its own, right behind its
        # question's.
        script = self._scripts.get(block) or self._scripts[span.view.parts[-1].block]
        if span.logits == 'all':
            # A choice: its next token is as scripted for as long as the choice agrees with the
            # script.
            return torch.stack([
                self._likely(script.tokens[n] if script.tokens[:n] == prompt[:n] else self._end)
                for n in range(len(prompt) - len(ids) + 1, len(prompt) + 1)])
        script.written += 1
        return self._likely(script.tokens[script.written])[None]

    def _words(self, prompt: str) -> str:
        if prompt == self.style.note_prefix.split(prompts.IM_END)[0]:
            self._notes += 1
            return self._note(self._notes - 1)
        return self._answer(prompt)

    def _likely(self, token: int) -> torch.Tensor:
        logits = torch.zeros(VOCABULARY)
        logits[token] = LIKELY
        return logits
