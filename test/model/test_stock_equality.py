"""The source stream, read in chunks and packed with other spans, against one stock forward."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import stock
from transformers import DynamicCache

from tww_ros import EngineConfig, load_model
from tww_ros.config import MemoryConfig, StepConfig
from tww_ros.engine.reader import CloseItem, PatchItem, Reader
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.run import Span, TokenRun
from tww_ros.video.pixels import to_pixels
from tww_ros.video.segmentation import SegmentKey

TOLERANCE = 1e-4
QUESTION = 'What changed, and when?'
# Frames of each segment, and height × width in px: odd counts, wide, high, square, mixed.
CLIPS = {
    'wide': [(4, 64, 96), (3, 64, 96)],
    'high': [(5, 128, 64)],
    'square': [(2, 96, 96), (2, 96, 96), (1, 96, 96)],
    'sizes change': [(3, 64, 128), (2, 96, 64), (1, 64, 64)],
    'small': [(1, 64, 64), (2, 32, 64)],
}


@functools.cache
def model():
    return load_model('tiny-random')


@functools.cache
def clips(name):
    """(frames, stamps in s) of every segment; 2 frames per second without a gap."""
    made, count = [], 0
    for seed, (frames, height, width) in enumerate(CLIPS[name]):
        stamps_s = [(count + i) / 2 for i in range(frames)]
        made.append((stock.noise(frames, height, width, seed), stamps_s))
        count += frames
    return made


@functools.cache
def one_shot(name):
    """Logits [N, vocab] and keys and values [L, H, N, D] of the stock model, all at once."""
    given_to_stock = stock.inputs(model().tokenizer, clips(name), QUESTION)
    with model().stock_attention() as hf, torch.inference_mode():
        output = hf(**given_to_stock, use_cache=True, past_key_values=DynamicCache())
    layers = output.past_key_values.layers
    return (output.logits[0], torch.stack([layer.keys[0] for layer in layers]),
            torch.stack([layer.values[0] for layer in layers]))


@functools.cache
def vision(name):
    """Every temporal patch of every segment behind the vision tower."""
    return [[model().encode_patch(to_pixels(list(pair), min_pixels=1_024, max_pixels=200_704))
             for pair in stock.pairs(frames)] for frames, _ in clips(name)]


def read(name, chunks, config=None, company=list):
    """Logits of all source tokens behind the header, and the sink's and the segments' blocks.

    chunks: tokens per step, used in a circle; company: what else stands in each step.
    """
    config = config or EngineConfig(step=StepConfig(chunk_tokens=65_536))
    bank = MemoryBank(config.memory)
    reader = Reader(model(), bank, config)
    reader.read_header()
    sizes = iter(chunks * 10_000)
    logits, blocks = [], []
    for index, ((_, stamps_s), patches) in enumerate(zip(clips(name), vision(name), strict=True)):
        key = SegmentKey('camera', 0, index)
        for (first_s, last_s), patch in zip(stock.pairs(stamps_s), patches, strict=True):
            reader.begin(PatchItem(key, (first_s + last_s) / 2, 0, 0, 2, patch, None, 0.0))
            whole = reader.span()
            done = 0
            while done < len(whole.run):
                size = next(sizes)
                run = whole.run.cut(done, min(done + size, len(whole.run)))
                others = company()
                middle = len(others) // 2
                spans = [*others[:middle], Span(whole.block, whole.view, run, 'all'),
                         *others[middle:]]
                logits.append(model().step(spans)[middle])
                done += len(run)
            reader.advance(len(whole.run))
        blocks.append(whole.block)
        reader.close(CloseItem(key, 'time'), lambda record: None)
    return torch.cat(logits), reader.sink, blocks


def largest(difference):
    return difference.abs().max().item()


@pytest.mark.parametrize('name', CLIPS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(chunks=st.lists(st.integers(1, 90), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_chunks_packed_with_other_spans_equal_one_shot(name, chunks, seed):
    # One longer chunk bounds the number of steps; the next test has chunks of one token only.
    check_packed(name, [*chunks, 40], seed)


def test_token_by_token_packed_with_other_spans_equals_one_shot():
    check_packed('small', [1], seed=0)


def check_packed(name, chunks, seed):
    """Read a clip beside a dialogue and other texts: the stock logits, keys and values."""
    rng = np.random.default_rng(seed)
    dialogue = model().new_block()
    opening = TokenRun.text(model().encode('somebody else talks'), 0)
    model().step([Span(dialogue, View((), 0, 0), opening)])

    def company():
        """Up to two texts of their own and one decode token of a dialogue that goes on."""
        texts = [TokenRun.text(rng.integers(0, 256, rng.integers(1, 9)).tolist(), 5)
                 for _ in range(rng.integers(0, 3))]
        spans = [Span(model().new_block(5), View((), 5, 5), run, 'last') for run in texts]
        word = TokenRun.text([int(rng.integers(0, 256))], dialogue.end)
        return [*spans, Span(dialogue, View((), 0, 0), word, 'last')]

    logits, sink, blocks = read(name, chunks, company=company)
    expected, keys, values = one_shot(name)
    end = sink.length + len(logits)
    assert largest(logits - expected[sink.length:end]) < TOLERANCE
    stored = [sink, *blocks]
    assert sum(block.length for block in stored) == end
    ours = torch.cat([block.keys[:, :, :block.length] for block in stored], 2)
    assert largest(ours - keys[:, :, :end]) < 1e-5
    ours = torch.cat([block.values[:, :, :block.length] for block in stored], 2)
    assert largest(ours - values[:, :, :end]) < 1e-5


@pytest.mark.parametrize('backend', ['eager', 'grouped'])
@pytest.mark.parametrize('name', CLIPS)
def test_question_behind_the_clip_equals_one_shot(name, backend):
    model().set_attention(backend)
    try:
        _, sink, blocks = read(name, [37])
        view = lay_out([Entry(block, 'source') for block in [sink, *blocks]], 'continuous')
        ids = model().encode(f'{QUESTION}<|im_end|>\n<|im_start|>assistant\n')
        branch = model().new_block(view.start('source'))
        logits, = model().step([Span(branch, view, TokenRun.text(ids, branch.end), 'all')])
    finally:
        model().set_attention('auto')
    expected, keys, _ = one_shot(name)
    assert len(expected) == view.tokens + len(ids)
    assert largest(logits - expected[-len(ids):]) < TOLERANCE
    assert largest(branch.keys[:, :, :len(ids)] - keys[:, :, -len(ids):]) < 1e-5


def test_deepstack_matters_here():
    """Without its features the logits differ by far more than the tolerance, so it is on above."""
    with model().stock_attention() as hf, torch.inference_mode():
        given_to_stock = stock.inputs(model().tokenizer, clips('wide'), QUESTION)
        features = hf.model.visual.deepstack_merger_list
        saved = [merger.linear_fc2.weight.clone() for merger in features]
        for merger in features:
            merger.linear_fc2.weight.zero_()
        without = hf(**given_to_stock).logits[0]
        for merger, weight in zip(features, saved, strict=True):
            merger.linear_fc2.weight.copy_(weight)
    assert largest(without - one_shot('wide')[0]) > 1_000 * TOLERANCE


def test_reader_chunks_itself_by_the_budget():
    """The reader's own cuts: never more than chunk_tokens, and the same keys."""
    config = EngineConfig(step=StepConfig(chunk_tokens=7), memory=MemoryConfig())
    bank = MemoryBank(config.memory)
    reader = Reader(model(), bank, config)
    reader.read_header()
    key = SegmentKey('camera', 0, 0)
    frames, stamps_s = clips('wide')[0]
    for (first_s, last_s), patch in zip(stock.pairs(stamps_s), vision('wide')[0], strict=True):
        reader.begin(PatchItem(key, (first_s + last_s) / 2, 0, 0, 2, patch, None, 0.0))
        while reader.busy:
            span = reader.span()
            assert len(span.run) <= 7
            model().step([span])
            reader.advance(len(span.run))
    _, keys, _ = one_shot('wide')
    block, start = span.block, reader.sink.length
    assert len(frames) == 4 and block.length > 14
    assert largest(block.keys[:, :, :block.length]
                   - keys[:, :, start:start + block.length]) < 1e-5


def test_text_is_what_the_stock_processor_writes():
    """The helper's time stamps and placeholders against the processor's own method."""
    from types import SimpleNamespace

    processor = pytest.importorskip('transformers.models.qwen3_vl.processing_qwen3_vl')
    method = getattr(processor.Qwen3VLProcessor, 'replace_video_token', None)
    if method is None:
        pytest.skip('this version of transformers has no replace_video_token')
    for frames, fps in ((1, 2.0), (5, 2.0), (6, 10.0), (7, 0.7), (23, 29.97)):
        fake = SimpleNamespace(
            video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
            vision_start_token='<|vision_start|>', vision_end_token='<|vision_end|>',
            video_token='<|video_pad|>')
        fake._calculate_timestamps = functools.partial(
            processor.Qwen3VLProcessor._calculate_timestamps, fake)
        metadata = SimpleNamespace(fps=fps, frames_indices=list(range(frames)))
        grid = torch.tensor([[(frames + 1) // 2, 4, 6]])
        text = method(fake, {'video_grid_thw': grid, 'video_metadata': [metadata]}, 0)
        assert text == stock.video_text([i / fps for i in range(frames)], 2, 3)
