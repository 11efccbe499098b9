"""One question behind a clip, through the engine, against `generate()` of stock transformers."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from reference import stock

from tww_ros import Engine, EngineConfig, Frame, Question, load_model
from tww_ros.config import NoteConfig, StepConfig, WatchConfig

TOKENS = 32
QUESTION = 'What do you see now?'
START_NS = 1_700_000_000_123_456_789
CONFIG = EngineConfig(watch=WatchConfig(segment_s=2.0), note=NoteConfig(enabled=False),
                      step=StepConfig(deterministic=True, chunk_tokens=50))


@functools.cache
def model(quantization):
    return load_model('tiny-random', quantization=quantization)


def answer(quantization, frames, config=CONFIG):
    """Token ids of the engine's answer to one question behind frames at 2 per second."""
    with Engine(model(quantization), config) as engine:
        for index, frame in enumerate(frames):
            assert engine.feed(Frame(START_NS + index * 500_000_000, 'camera', frame))
        question = Question(QUESTION, max_new_tokens=TOKENS)
        return engine.ask(question).result(60)


def generated(quantization, frames, ends=None):
    """Token ids of the stock `generate()`, greedy, the end mark included."""
    loaded = model(quantization)
    stamps_s = [i / 2 for i in range(len(frames))]
    given = stock.inputs(loaded.tokenizer, [(frames, stamps_s)], QUESTION)
    with loaded.stock_attention() as hf, torch.inference_mode():
        output = hf.generate(**given, max_new_tokens=TOKENS, do_sample=False,
                             **({'eos_token_id': sorted(ends)} if ends else {}))
    return output[0, given['input_ids'].shape[1]:].tolist()


def without_mark(ids, ends):
    return ids[:-1] if ids[-1] in ends else ids


@pytest.mark.parametrize(('quantization', 'count', 'height', 'width'), [
    ('none', 4, 64, 96), ('none', 7, 64, 96), ('none', 1, 128, 96), ('none', 9, 96, 64),
    ('nf4', 4, 96, 64), ('nf4', 5, 64, 128)])
def test_answer_has_the_ids_of_stock_generate(quantization, count, height, width):
    frames = stock.noise(count, height, width, seed=count)
    expected = generated(quantization, frames)
    ours = answer(quantization, frames)
    ends = set(model(quantization).hf.generation_config.eos_token_id)
    assert list(ours.token_ids) == without_mark(expected, ends)
    assert ours.finish_reason == ('stop' if expected[-1] in ends else 'length')
    assert len(set(expected)) > 4                                  # not one token for ever


@pytest.mark.parametrize('quantization', ['none', 'nf4'])
def test_end_mark_stops_both(quantization, monkeypatch):
    """A token that both write early is declared the end mark: same ids up to it, none of it."""
    frames = stock.noise(6, 64, 96, seed=3)
    free = generated(quantization, frames)
    mark = next(token for n, token in enumerate(free) if n >= 5 and token not in free[:n])
    monkeypatch.setattr(model(quantization), 'answer_ends', frozenset({mark, 1}))
    expected = generated(quantization, frames, ends={mark, 1})
    ours = answer(quantization, frames)
    assert expected[-1] == mark and 5 < len(expected) <= TOKENS
    assert list(ours.token_ids) == expected[:-1]
    assert ours.finish_reason == 'stop' and ours.completion_tokens == len(expected) - 1


def test_frames_that_need_resizing():
    """150×100 px stand on a 160×96 grid of cells: bicubic, as the stock processor resizes."""
    frames = stock.noise(3, 100, 150, seed=5)
    resized = [np.asarray(Image.fromarray(frame).resize((160, 96), Image.Resampling.BICUBIC))
               for frame in frames]
    assert list(answer('none', frames).token_ids) == generated('none', resized)


def test_a_second_engine_beside_other_chunks_gives_the_same_ids():
    frames = stock.noise(8, 64, 64, seed=11)
    expected = generated('none', frames)
    for chunk in (5, 65_536):
        config = EngineConfig(watch=CONFIG.watch, note=CONFIG.note,
                              step=StepConfig(deterministic=False, chunk_tokens=chunk))
        assert list(answer('none', frames, config).token_ids) == expected


def test_the_question_decides_the_ids():
    """Not a constant of the model: other pixels, other ids."""
    first, second = (answer('none', stock.noise(4, 64, 64, seed=seed)) for seed in (0, 1))
    assert first.token_ids != second.token_ids
