"""VideoLanguageModel: the stock Qwen3-VL classes behind the few verbs that the engine needs.

In: text, pixels of temporal patches, spans. Out: token ids, vision tokens, logits; keys and values
land in the spans' own blocks. It holds no state between steps and knows nothing of sessions,
memory tiers or time.

The model is never changed: our attention comes in through transformers' registry
(`model.attention`), everything else through explicit inputs to the language model. One packed step
is one forward pass over the tokens of all its spans: linear layers see them together (each weight
is read once), attention is done span by span.

`step` may be called by one thread only (the reasoner); `encode_patch` by another (the watcher) at
the same time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration

from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.view import Part, Scheme, View
from tww_ros.model.attention import NAME, choose_backend
from tww_ros.model.codec import TextCodec
from tww_ros.model.costs import StepCosts, measure_costs
from tww_ros.model.device import SideStream, send
from tww_ros.model.joining import Pages
from tww_ros.model.planning import Attend, plan_step
from tww_ros.model.positions import MRope
from tww_ros.model.prompts import PromptStyle
from tww_ros.model.run import Span, VisionTokens
from tww_ros.video.pixels import Pixels

# Of each tensor, that a fingerprint looks at.
FINGERPRINT_NUMBERS = 256
# Fewer parts are not worth joining, nor are parts with more bytes in a token.
LEAST_PARTS = 4
MOST_TOKEN_BYTES = 32 << 10


class VideoLanguageModel:
    """Qwen3-VL as the engine sees it. Make one with `load_model`."""

    def __init__(self, model: Qwen3VLForConditionalGeneration,
                 tokenizer: PreTrainedTokenizerBase, *, name: str, scheme: Scheme,
                 style: PromptStyle, quantization: str = 'none',
                 settings: Mapping[str, Any] | None = None) -> None:
        """settings: of the engine, by dotted name, that this checkpoint was trained with."""
        text = model.config.text_config
        self.hf = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.scheme = scheme
        self.style = style
        self.quantization = quantization
        self.settings = dict(settings or {})
        # Once, because a status several times a second asks for the description.
        self._weights_mb = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
        self.device = model.device
        self.dtype = model.model.language_model.embed_tokens.weight.dtype
        self.block_shape = BlockShape(text.num_hidden_layers, text.num_key_value_heads,
                                      text.head_dim, self.dtype, self.device)
        vision = model.config.vision_config
        self.patch_size = vision.patch_size
        self.merge_size = vision.spatial_merge_size
        self.temporal_patch_size = vision.temporal_patch_size
        self.video_pad_id = model.config.video_token_id
        self.codec = TextCodec(tokenizer, name=name, style=style, scheme=scheme,
                               vocabulary=text.vocab_size, video_pad_id=self.video_pad_id)
        self.note_ends = self._mark_ids(style.note_ends)
        self.answer_ends = self._mark_ids(style.answer_ends)
        self._rope = MRope(text, self.device)
        self._pages = (Pages(self._rope, self.block_shape) if self.device.type == 'cpu'
                       and self.block_shape.token_bytes <= MOST_TOKEN_BYTES else None)
        self._language_model = model.model.language_model
        self._embed = self._language_model.embed_tokens
        self._heads = text.num_attention_heads
        self._beside = SideStream(self.device)
        self.set_attention('fixed')
        text._attn_implementation = NAME

    def set_attention(self, backend: str | Attend) -> None:
        """Take another attention backend: see `attention.choose_backend`; or a function."""
        self._attend = (choose_backend(backend, self.block_shape, self._heads)
                        if isinstance(backend, str) else backend)

    def describe(self) -> str:
        """One line for logs and status."""
        return (f'{self.name}: {self.block_shape.layers} layers, {self._weights_mb:.1f} MB of '
                f'weights ({self.quantization}), {self.dtype} on {self.device}, positions '
                f'{self.scheme}, prompts {self.style.name}, {self.block_shape.token_bytes} bytes '
                'of KV per token')

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells these weights from others: SHA-256 of a sample of every tensor."""
        digest = hashlib.sha256()
        for _, weight in sorted(self.hf.named_parameters()):
            flat = weight.detach().flatten()
            sample = flat[::max(1, len(flat) // FINGERPRINT_NUMBERS)][:FINGERPRINT_NUMBERS]
            digest.update(sample.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def step_costs(self) -> StepCosts:
        """How long steps take, measured at first use; by the thread that takes the steps."""
        return measure_costs(self)

    @property
    def page_bytes(self) -> int:
        """Bytes of copies that make attention quick, beside the memory they are of."""
        return 0 if self._pages is None else self._pages.nbytes

    # Text

    def encode(self, text: str) -> list[int]:
        """Token ids of our own text, special tokens recognised."""
        return self.codec.encode(text)

    def encode_user(self, text: str) -> list[int]:
        """Token ids of a user's text; special tokens written in it are plain characters."""
        return self.codec.encode_user(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.codec.decode(ids)

    # Vision

    @torch.inference_mode()
    def encode_patch(self, pixels: Pixels) -> VisionTokens:
        """One temporal patch through the vision tower and its DeepStack mergers."""
        with self._beside():
            grid = torch.tensor([[1, pixels.grid_h, pixels.grid_w]], device=self.device)
            output = self.hf.model.get_image_features(send(pixels.values, self.device), grid,
                                                      return_dict=True)
            tokens, *levels = (level[0].to(self.dtype) for level in
                               (output.pooler_output, *output.deepstack_features))
            self._beside.lend(tokens, *levels)
        rows, columns = pixels.grid_h // self.merge_size, pixels.grid_w // self.merge_size
        return VisionTokens(tokens, tuple(levels), rows, columns)

    # Steps

    def new_block(self, start: int = 0, capacity: int = 0) -> KVBlock:
        """An empty KV block of this model's shape."""
        return KVBlock(self.block_shape, start=start, capacity=capacity)

    @torch.inference_mode()
    def step(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """One packed forward pass; per span its logits, [rows, vocab] float32, or None.

        Every span's keys and values are appended to its block. A span may attend to a block that
        another span of the same step extends only as far as the view's lengths say.
        """
        ids = send(np.array([i for span in spans for i in span.run.ids], np.int64), self.device)
        embeds = self._embed(ids)                                               # [N, E]
        visual, deepstack = self._visual(spans, embeds)
        plan = plan_step(spans, self._rope, self.dtype, self.device, self._attend, self._parts)
        hidden = self._language_model(
            inputs_embeds=embeds[None],
            # All-zero positions make the built-in rotation the identity; ours is in the attention
            # function.
            position_ids=torch.zeros(3, 1, len(ids), dtype=torch.long, device=self.device),
            visual_pos_masks=visual, deepstack_visual_embeds=deepstack,
            use_cache=False, tww_step=plan,
        ).last_hidden_state[0]                                                  # [N, E]
        rows, counts = [], []
        for span, place in zip(spans, plan.spans, strict=True):
            wanted = {'none': 0, 'last': 1, 'all': len(span.run)}[span.logits]
            rows += range(place.last - wanted, place.last)
            counts.append(wanted)
        logits = self.hf.lm_head(hidden[rows]).float()                          # [rows, vocab]
        # Nothing counts before everything is computed: a step that fails changes no block.
        for span in spans:
            span.block.commit(len(span.run), span.run.end)
            if span.summary is not None:
                span.summary.commit()
        plan.add_mass()
        return [part if len(part) else None for part in logits.split(counts)]

    def _visual(self, spans: Sequence[Span], embeds: torch.Tensor
                ) -> tuple[torch.Tensor | None, list[torch.Tensor] | None]:
        """Put vision tokens into the embeddings.

        Out: the mask [1, N], and DeepStack features [V, E] per layer.
        """
        seen = [span.run for span in spans if span.run.visual is not None]
        if not seen:
            return None, None
        mask = np.concatenate([np.zeros(len(span.run), bool) if span.run.visual is None
                               else span.run.visual for span in spans])
        visual = send(mask, self.device)
        embeds[visual] = torch.cat([run.tokens for run in seen])
        levels = [torch.cat(level) for level in zip(*(run.deepstack for run in seen), strict=True)]
        return visual[None], levels

    def _parts(self, view: View) -> Sequence[Part]:
        """What is attended to, in as few parts as may be; worked out once for each view."""
        if self._pages is None or len(view.parts) < LEAST_PARTS:
            return view.parts
        if 'parts' not in view.memo:
            view.memo['parts'] = self._pages.join(view.parts)
        return view.memo['parts']

    # The stock forward, for baselines and tests

    @contextlib.contextmanager
    def stock_attention(self, implementation: str = 'sdpa'
                        ) -> Iterator[Qwen3VLForConditionalGeneration]:
        """The same weights with transformers' own attention, e.g. for `generate()`.

        Not while an engine runs.
        """
        text = self.hf.config.text_config
        text._attn_implementation = implementation
        try:
            yield self.hf
        finally:
            text._attn_implementation = NAME

    def _mark_ids(self, marks: tuple[str, ...]) -> frozenset[int]:
        return frozenset(self.codec.mark_id(mark) for mark in marks)
