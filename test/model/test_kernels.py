"""The Triton kernel against float64 attention over what a block says it holds.

On a GPU as it is compiled; elsewhere in Triton's interpreter, where Triton is installed.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'
pytest.importorskip('triton')

from tww_ros import load_model
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.quantization import BITS, QuantScheme, quantize, turn, turn_back
from tww_ros.memory.view import Entry, lay_out
from tww_ros.model.kernels import attend_quantized
from tww_ros.model.run import Span, TokenRun

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
LAYERS, LAYER = 3, 1


def quantized(bits, kv_heads, size, tokens, dtype=torch.float32):
    block = KVBlock(BlockShape(LAYERS, kv_heads, size, dtype, DEVICE), capacity=tokens)
    for layer in range(LAYERS):
        block.write(layer, *torch.randn(2, kv_heads, tokens, size, device=DEVICE).to(dtype))
    block.commit(tokens, tokens)
    return quantize(block, QuantScheme(bits))


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize(('size', 'kv_heads', 'group', 'rows', 'tokens', 'first', 'last'), [
    (32, 2, 4, 1, 20, 0, 20), (32, 2, 4, 8, 131, 0, 131), (64, 1, 3, 2, 75, 0, 74),
    (128, 2, 2, 5, 200, 30, 193), (96, 1, 1, 1, 1, 0, 1)])
def test_agrees_with_float64(bits, size, kv_heads, group, rows, tokens, first, last):
    torch.manual_seed(bits)
    block = quantized(bits, kv_heads, size, tokens)
    query = torch.randn(kv_heads, rows, group, size, device=DEVICE)
    result, lse = attend_quantized(turn(query), block, LAYER, first, last, 0.3)
    keys, values = (verb(LAYER, last)[:, first:].double()
                    for verb in (block.layer_keys, block.layer_values))
    scores = query.flatten(1, 2).double() @ keys.transpose(1, 2) * 0.3
    assert (lse - scores.logsumexp(-1)).abs().max() < 1e-5
    assert (turn_back(result) - scores.softmax(-1) @ values).abs().max() < 1e-5


def test_takes_queries_in_bfloat16():
    block = quantized(3, 2, 64, 90, torch.bfloat16)
    query = torch.randn(2, 1, 4, 64, device=DEVICE).bfloat16()
    result, _ = attend_quantized(turn(query), block, LAYER, 0, 90, 0.125)
    keys, values = (verb(LAYER, 90).double() for verb in (block.layer_keys, block.layer_values))
    scores = query.flatten(1, 2).double() @ keys.transpose(1, 2) * 0.125
    assert (turn_back(result) - scores.softmax(-1) @ values).abs().max() < 0.02


@pytest.mark.parametrize('sessions', [1, 3])
def test_short_spans_meet_packed_blocks_in_one_step_with_others(sessions):
    """The backend as a whole beside `grouped`, which is compared with float64 elsewhere."""
    model = load_model('tiny-random', device=DEVICE.type, dtype='float32')
    shape, blocks = model.block_shape, []
    torch.manual_seed(5)
    for number, bits in enumerate((3, 0, 4)):
        block = KVBlock(shape, start=30 * number, capacity=25)
        for layer in range(shape.layers):
            block.write(layer, *torch.randn(2, shape.kv_heads, 25, shape.head_dim, device=DEVICE))
        block.commit(25, block.start + 25)
        blocks.append(quantize(block, QuantScheme(bits)) if bits else block)
    view = lay_out([Entry(block, 'source', number) for number, block in enumerate(blocks)],
                   'continuous')
    told, masses = [], []
    for backend in ('grouped', 'triton'):
        model.set_attention(backend)
        mass = [torch.zeros(4, device=DEVICE) for _ in range(sessions)]
        told.append(model.step([
            Span(model.new_block(view.next_source), view,
                 TokenRun.text(list(range(7, 9 + session)), view.next_source), 'last', one)
            for session, one in enumerate(mass)]))
        masses.append(torch.stack(mass))
    for ours, theirs in zip(*told, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert torch.allclose(*masses, atol=1e-5)
