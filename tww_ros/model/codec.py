"""Text to token ids and back, with the marks of a prompt style.

Picklable and without weights, so that processes which only lay out text need no model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tww_ros.errors import ModelError
from tww_ros.memory.view import Scheme
from tww_ros.model.prompts import LITERAL_IDS, PromptStyle


class TextCodec:
    """A tokenizer, the prompt style and the position scheme of one checkpoint."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, style: PromptStyle,
                 scheme: Scheme, vocabulary: int, video_pad_id: int) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.style = style
        self.scheme = scheme
        self.vocabulary = vocabulary
        self.video_pad_id = video_pad_id
        # Whether special tokens are split is a switch inside the tokenizer, which callers of
        # ask() and the engine's threads would turn under each other.
        self._tokenizing = threading.Lock()
        # Asked for with every note and answer; a real vocabulary takes long to list.
        self._marks: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != '_tokenizing'}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._tokenizing = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Token ids of our own text, special tokens recognised."""
        if text in LITERAL_IDS:
            return [self.mark_id(text)]
        with self._tokenizing:
            return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_user(self, text: str) -> list[int]:
        """Token ids of a user's text; special tokens written in it are plain characters."""
        with self._tokenizing:
            return self.tokenizer.encode(text, add_special_tokens=False,
                                         split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True,
                                     clean_up_tokenization_spaces=False)

    def mark_id(self, mark: str) -> int:
        """Id of a mark, literal when the tokenizer does not know it; ModelError without one."""
        if mark not in self._marks:
            self._marks[mark] = self._find_mark(mark)
        return self._marks[mark]

    def _find_mark(self, mark: str) -> int:
        known = self.tokenizer.get_vocab().get(mark)
        if known is not None:
            return known
        literal = LITERAL_IDS.get(mark)
        if literal is None or literal >= self.vocabulary:
            raise ModelError(f'{self.name}: the vocabulary of {self.vocabulary} tokens has no '
                             f'{mark!r}, which {self.style.name!r} prompts need; use '
                             'prompts="stock", or a checkpoint trained with it')
        return literal
