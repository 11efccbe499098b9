"""tiny-random: a seeded Qwen3-VL of five million parameters, byte-level tokenizer, for tests.

The classes are transformers' own; only the sizes are small and the weights random, so its words
mean nothing. The initial spread is larger than Qwen's 0.02 so that attention matters: a wrong mask
or position changes the logits by far more than rounding does. Linear layers are multiples of 64
wide, as 4-bit quantization needs.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tww_ros.model import prompts

SPECIAL_TOKENS = (prompts.END_OF_TEXT, prompts.IM_START, prompts.IM_END, prompts.VISION_START,
                  prompts.VISION_END, '<|image_pad|>', prompts.VIDEO_PAD, prompts.END_OF_ANSWER,
                  prompts.END_OF_NOTE)
VOCABULARY = 320


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and Qwen's special tokens; decodes what it encodes, whatever the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {char: i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=prompts.IM_END,
                                   pad_token=prompts.END_OF_TEXT)


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Four layers, eight query heads on two key-value heads, DeepStack on two levels."""
    return with_special_tokens(
        tokenizer,
        text_config={
            'vocab_size': VOCABULARY, 'hidden_size': 256, 'intermediate_size': 768,
            'num_hidden_layers': 4, 'num_attention_heads': 8, 'num_key_value_heads': 2,
            'head_dim': 32, 'initializer_range': 0.06, 'max_position_embeddings': 32_768,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 5_000_000.0,
                                'mrope_section': [6, 5, 5], 'mrope_interleaved': True},
        },
        vision_config={
            'depth': 3, 'hidden_size': 128, 'intermediate_size': 256, 'num_heads': 4,
            'out_hidden_size': 256, 'num_position_embeddings': 256,
            'deepstack_visual_indexes': [0, 1], 'initializer_range': 0.06,
        },
    )


def with_special_tokens(tokenizer: PreTrainedTokenizerFast, text_config: dict[str, object],
                        vision_config: dict[str, object]) -> Qwen3VLConfig:
    """A Qwen3-VL configuration of these sizes for a tokenizer that has SPECIAL_TOKENS."""
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)),
                   strict=True))
    return Qwen3VLConfig(
        text_config=text_config, vision_config=vision_config,
        image_token_id=ids['<|image_pad|>'], video_token_id=ids[prompts.VIDEO_PAD],
        vision_start_token_id=ids[prompts.VISION_START],
        vision_end_token_id=ids[prompts.VISION_END], tie_word_embeddings=True,
    )


def tiny_model(seed: int = 0) -> tuple[Qwen3VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model (float32, CPU) and its tokenizer; the same seed gives the same weights."""
    tokenizer = byte_tokenizer()
    return random_weights(tiny_config(tokenizer), tokenizer, seed), tokenizer


def random_weights(config: Qwen3VLConfig, tokenizer: PreTrainedTokenizerFast,
                   seed: int) -> Qwen3VLForConditionalGeneration:
    """A model with the weights of that seed (float32, CPU); torch's own seed stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(
        [prompts.IM_END, prompts.END_OF_TEXT])
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
