"""StepModel: what the engine needs of a model.

`VideoLanguageModel` and `ScriptedModel` provide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.view import Scheme
from tww_ros.model.costs import StepCosts
from tww_ros.model.prompts import PromptStyle
from tww_ros.model.run import Span, VisionTokens
from tww_ros.video.pixels import Pixels


class StepModel(Protocol):
    """See `model.language_model.VideoLanguageModel`, the real one."""

    name: str
    scheme: Scheme
    style: PromptStyle
    quantization: str
    settings: Mapping[str, Any]
    device: torch.device
    block_shape: BlockShape
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    video_pad_id: int
    note_ends: frozenset[int]
    answer_ends: frozenset[int]

    @property
    def fingerprint(self) -> str: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def step_costs(self) -> StepCosts | None: ...
    def describe(self) -> str: ...
    def set_attention(self, backend: str) -> None: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_user(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def encode_patch(self, pixels: Pixels) -> VisionTokens: ...
    def new_block(self, start: int = 0, capacity: int = 0) -> KVBlock: ...
    def step(self, spans: Sequence[Span]) -> list[torch.Tensor | None]: ...
