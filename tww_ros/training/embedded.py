"""The embedded model before training: its sizes, its tokenizer, and the settings it is made for.

In: a seed. Out: a VideoLanguageModel with random weights. The classes are transformers' Qwen3-VL;
small enough that two CPU cores train it and that its weights fit into the package.

One merged vision token covers one place of the tabletop (96 × 96 px, 3 × 3 tokens). A thing ('red
ball'), a place ('back left', 'from back left') and every other word of the tabletop's language is
one token, so that to find a thing among the notes is to find one token; other text falls back to
bytes.
"""

from __future__ import annotations

import random

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig

from tww_ros.config import EngineConfig
from tww_ros.memory.view import Scheme
from tww_ros.model import prompts
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.tiny import SPECIAL_TOKENS, random_weights, with_special_tokens
from tww_ros.world.notes import Chronicle
from tww_ros.world.questions import Asker
from tww_ros.world.table import COLOURS, PLACES, SHAPES, simulate

# What the model is trained with is what the engine must run it with.
SETTINGS = {
    'watch.sample_fps': 1.0, 'watch.segment_s': 1.5, 'watch.min_pixels': 9_216,
    'watch.max_pixels': 9_216, 'memory.read_window_tokens': 66, 'memory.resident_tokens': 176,
    'memory.resident_note_tokens': 4_096, 'note.window_tokens': 24, 'note.max_new_tokens': 64,
    'answer.session_tokens': 1_024, 'note.episode_notes': 0,
}
SCHEME: Scheme = 'continuous'
# One token each: the layout costs little, and 'Answer: ' is the same before an open answer and
# before a choice.
# What stands behind them begins with a space, so that a word is the same token wherever it stands.
LAYOUT_TOKENS = ('[SEG THINK]\n', '\n\n[Q THINK]\n', 'Focus:', 'Reasoning:', '\nAnswer:',
                 '\nOptions:', 'user\n', 'assistant\n')
VOCABULARY = 640
# Norms of queries and keys at the start: from 1, long streams are learnt later.
SHARPNESS = 1.5


def settings() -> EngineConfig:
    """The engine's settings for this model."""
    return EngineConfig.from_flat(SETTINGS)


def tabletop_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from the tabletop's language; see above. Every digit is a token of its
    own."""
    tokenizer = Tokenizer(models.BPE())
    things = f"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
    places = '|'.join(sorted(PLACES, key=len, reverse=True))
    words = Regex(rf" ?(?:{things}|(?:from )?(?:{places}))(?![A-Za-z])"
                  r"| ?[A-Za-z']+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_corpus(), trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(LAYOUT_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in LAYOUT_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=prompts.IM_END,
                                   pad_token=prompts.END_OF_TEXT)


def embedded_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Sizes of the embedded model."""
    return with_special_tokens(
        tokenizer,
        text_config={
            'vocab_size': VOCABULARY, 'hidden_size': 256, 'intermediate_size': 640,
            'num_hidden_layers': 5, 'num_attention_heads': 4, 'num_key_value_heads': 1,
            'head_dim': 64, 'initializer_range': 0.03, 'max_position_embeddings': 32_768,
            # As the released models have it. With 10,000 only an eighth of a head's numbers turn
            # by less than a radian over a stream, too few to find an old note by what it says.
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 5_000_000.0,
                                'mrope_section': [12, 10, 10], 'mrope_interleaved': True},
        },
        vision_config={
            'depth': 3, 'hidden_size': 128, 'intermediate_size': 384, 'num_heads': 4,
            'out_hidden_size': 256, 'num_position_embeddings': 36,
            'deepstack_visual_indexes': [1], 'initializer_range': 0.03,
        },
    )


def untrained(seed: int = 0, scheme: Scheme = SCHEME, device: str = 'cpu') -> VideoLanguageModel:
    """The model with random weights, the same on every device; scheme: of its positions."""
    tokenizer = tabletop_tokenizer()
    model = random_weights(embedded_config(tokenizer), tokenizer, seed)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_norm.weight.fill_(SHARPNESS)
            layer.self_attn.k_norm.weight.fill_(SHARPNESS)
    model = model.to('cpu' if device == 'auto' else device)
    return VideoLanguageModel(model, tokenizer, name='embedded', scheme=scheme, style=prompts.TWW,
                              settings=SETTINGS)


def _corpus() -> list[str]:
    """Text of some hundred worlds as it stands behind layout tokens."""
    texts = []
    for seed in range(300):
        rng = random.Random(seed)
        chronicle = Chronicle(simulate(seed, 120.0))
        for second in range(0, 120, 2):
            note = chronicle.add((second, second + 1), second + 0.5)
            texts += [f' {note}', prompts.timestamp(second + 0.5)]
            if second % 6 == 0:
                asker = Asker(chronicle, rng)
                made = asker.ask().with_choices(rng)
                options = prompts.TWW.question('', made.choices).removeprefix('\nOptions:')
                texts += [made.text, f' {made.reasoning}', f' {made.answer}', options]
                if made.subject:
                    texts.append(asker.follow_up(made.subject).text)
    return texts
