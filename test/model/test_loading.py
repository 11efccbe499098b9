"""load_model: what comes back as it was saved, and what is refused with which words."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from reference import stock
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen2Config

from tww_ros import load_model
from tww_ros.errors import ModelError
from tww_ros.memory.view import View
from tww_ros.model import marks
from tww_ros.model.run import Span, TokenRun
from tww_ros.model.tiny import tiny_model
from tww_ros.video.pixels import to_pixels


@functools.cache
def model(quantization='none'):
    return load_model('tiny-random', quantization=quantization)


def logits(loaded):
    """Logits of a text behind a temporal patch: every kind of weight has its part in them."""
    vision = loaded.encode_patch(to_pixels(stock.noise(2, 64, 96), min_pixels=1_024,
                                           max_pixels=200_704))
    count = vision.rows * vision.columns
    run = TokenRun.text([*[loaded.video_pad_id] * count, *loaded.encode('What is there?')], 0)
    visual = torch.tensor(run.ids).eq(loaded.video_pad_id).numpy()
    run = TokenRun(run.ids, run.positions, run.end, visual, vision.tokens, vision.deepstack)
    return loaded.step([Span(loaded.new_block(), View((), 0, 0), run, 'all')])[0]


@pytest.fixture
def checkpoint(tmp_path):
    """tiny-random as a directory that a test may damage."""
    model().hf.save_pretrained(tmp_path)
    model().tokenizer.save_pretrained(tmp_path)
    return tmp_path


def refused(words, name, **options):
    """The message of the ModelError, in which all these words stand."""
    with pytest.raises(ModelError) as caught:
        load_model(str(name), **options)
    for word in words:
        assert str(word) in str(caught.value)


def edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


# What comes back

def test_a_saved_checkpoint_gives_the_same_logits(checkpoint):
    loaded = load_model(str(checkpoint))
    assert torch.equal(logits(loaded), logits(model()))
    assert (loaded.scheme, loaded.style.name) == ('continuous', 'stock')
    assert loaded.answer_ends == model().answer_ends == loaded.note_ends
    text = 'a cup — ein Becher, 杯 <|im_end|>'
    assert loaded.encode(text) == model().encode(text)
    assert loaded.decode(loaded.encode_user(text)) == text
    assert str(checkpoint) in loaded.describe()


def test_a_relative_path_is_a_path(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    assert torch.equal(logits(load_model(f'./{checkpoint.name}')), logits(model()))


def test_the_same_seed_gives_the_same_weights():
    again, other = tiny_model(0)[0], tiny_model(1)[0]
    state = model().hf.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in again.state_dict().items())
    assert not torch.equal(state['lm_head.weight'], other.state_dict()['lm_head.weight'])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tiny_model(0)
    assert torch.equal(torch.rand(2), expected), 'loading must not touch the global generator'


def test_bfloat16_when_asked_for():
    loaded = load_model('tiny-random', dtype='bfloat16')
    assert loaded.dtype == loaded.block_shape.dtype == torch.bfloat16
    assert loaded.block_shape.token_bytes == 1_024 == model().block_shape.token_bytes // 2
    assert (logits(loaded) - logits(model())).abs().mean() < 0.1


def test_marks_of_a_think_while_watching_checkpoint(checkpoint):
    (checkpoint / 'tww.json').write_text('{"positions": "decoupled", "prompts": "tww"}')
    loaded = load_model(str(checkpoint))
    assert (loaded.scheme, loaded.style.name) == ('decoupled', 'tww')
    assert loaded.tokenizer.convert_tokens_to_ids('<EOT>') in loaded.note_ends
    loaded = load_model(str(checkpoint), positions='continuous', prompts='stock')
    assert (loaded.scheme, loaded.style.name) == ('continuous', 'stock')


def test_marks_of_a_hub_checkpoint(checkpoint, tmp_path):
    """In a process of its own, with the hub's cache in place of the network."""
    (checkpoint / 'tww.json').write_text('{"positions": "decoupled", "prompts": "tww"}')
    home = tmp_path / 'home'
    repository = home / 'hub' / 'models--someone--watcher'
    shutil.copytree(checkpoint, repository / 'snapshots' / '0123')
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('0123')
    program = ("from tww_ros import load_model; loaded = load_model('someone/watcher'); "
               "print(loaded.scheme, loaded.style.name)")
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('HF_', 'HUGGINGFACE_', 'TRANSFORMERS_'))}
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          timeout=120, env={**environment, 'HF_HOME': str(home),
                                            'HF_HUB_OFFLINE': '1'}, check=False)
    assert done.stdout.split() == ['decoupled', 'tww'], done.stderr


@pytest.mark.parametrize(('content', 'word'), [
    ('{"positions": "sideways"}', 'sideways'), ('{"prompts": "none"}', 'none'),
    ('{"positions"', 'decoupled'), ('[1]', 'expected {'), ('"tww"', 'expected {')])
def test_broken_marks_are_refused(checkpoint, content, word):
    (checkpoint / 'tww.json').write_text(content)
    refused([checkpoint / 'tww.json', word], checkpoint)


# Quantization

def test_nf4_in_float32_equals_its_dequantized_weights():
    plain = load_model('tiny-random')
    layers = {name: module for name, module in model('nf4').hf.named_modules()
              if isinstance(module, Linear4bit)}
    assert len(layers) == 4 * 7 and all('language_model.layers' in name for name in layers)
    for name, module in layers.items():
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        target = plain.hf.get_submodule(name).weight
        assert 0 < (target - weight).abs().max() < 0.1
        with torch.no_grad():
            target.copy_(weight)
    assert (logits(model('nf4')) - logits(plain)).abs().max() < 1e-4
    assert (logits(model('nf4')) - logits(model())).abs().max() > 0.01


def test_int8_loads_and_runs():
    loaded = load_model('tiny-random', quantization='int8')
    layers = [m for m in loaded.hf.modules() if isinstance(m, Linear8bitLt)]
    assert len(layers) == 4 * 7
    got, expected = logits(loaded), logits(model())
    assert torch.isfinite(got).all()
    assert 0 < (got - expected).abs().mean() < 0.2 * expected.abs().mean()
    assert 'int8' in loaded.describe()


def test_a_path_is_quantized_as_tiny_random_is(checkpoint):
    assert torch.equal(logits(load_model(str(checkpoint), quantization='nf4')),
                       logits(model('nf4')))


def test_vision_tower_and_head_stay_unquantized():
    plain, quantized = model().hf.state_dict(), model('nf4').hf.state_dict()
    for name in ('lm_head.weight', 'model.visual.blocks.0.attn.qkv.weight'):
        assert torch.equal(plain[name], quantized[name])


def test_kernels_that_import_but_do_not_run_are_found_at_loading(monkeypatch):
    def broken(self, x):
        raise RuntimeError('no kernel image is available for execution on the device')

    monkeypatch.setattr(Linear4bit, 'forward', broken)
    refused(['nf4 kernels do not run on cpu', 'no kernel image', 'quantization="none"'],
            'tiny-random', quantization='nf4')


# What is refused

@pytest.mark.parametrize('name', [
    '/no/such/folder', './nothing-here', '~/nothing-here-either', 'a/b/c', 'tiny_random', ''])
def test_missing_checkpoint(name):
    refused(['config.json', 'tiny-random'], name)


def test_a_hub_id_that_cannot_be_read_here():
    refused(['nobody/no-such-model', 'network'], 'nobody/no-such-model')


def test_a_directory_without_config(tmp_path):
    (tmp_path / 'notes.txt').write_text('not a checkpoint')
    refused(['config.json', 'notes.txt'], tmp_path)


def test_a_file_instead_of_a_directory(checkpoint):
    refused(['directory with config.json'], checkpoint / 'model.safetensors')


@pytest.mark.parametrize(('config', 'kind'), [
    (Qwen2Config(num_hidden_layers=1), 'qwen2'), (LlamaConfig(num_hidden_layers=1), 'llama')])
def test_another_architecture(tmp_path, config, kind):
    config.save_pretrained(tmp_path)
    refused([repr(kind), 'expected "qwen3_vl"'], tmp_path)


def test_an_unknown_architecture(checkpoint):
    edit(checkpoint / 'config.json', model_type='qwen9_vl')
    refused(['qwen9_vl'], checkpoint)


def test_a_config_that_is_not_json(checkpoint):
    (checkpoint / 'config.json').write_text('{"model_type": ')
    refused(['its config cannot be read'], checkpoint)


@pytest.mark.parametrize('damage', ['cut short', 'noise', 'empty', 'missing'])
def test_damaged_weights(checkpoint, damage):
    file = checkpoint / 'model.safetensors'
    content = file.read_bytes()
    if damage == 'missing':
        file.unlink()
    else:
        file.write_bytes({'cut short': content[:len(content) // 2], 'noise': b'\x07' * 5_000,
                          'empty': b''}[damage])
    refused(['the weights cannot be loaded', 'safetensors'], checkpoint)


def test_a_checkpoint_that_lacks_a_weight(checkpoint):
    file, name = checkpoint / 'model.safetensors', 'model.language_model.norm.weight'
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={'format': 'pt'})
    refused(['1 weights are missing', name], checkpoint)


def test_weights_of_another_size(checkpoint):
    file, name = checkpoint / 'model.safetensors', 'model.language_model.norm.weight'
    weights = load_file(file)
    save_file({**weights, name: torch.ones(64)}, file, metadata={'format': 'pt'})
    refused(['the weights cannot be loaded'], checkpoint)


def test_a_checkpoint_without_its_tokenizer(checkpoint):
    for file in checkpoint.glob('token*'):
        file.unlink()
    refused(['the tokenizer cannot be read', 'tokenizer.json'], checkpoint)


def test_tww_prompts_need_their_marks(checkpoint):
    file = checkpoint / 'tokenizer.json'
    file.write_text(file.read_text().replace('<EOQ>', '<EOX>').replace('<EOT>', '<EOY>'))
    assert load_model(str(checkpoint)).style.name == 'stock'
    refused(['has no', 'prompts="stock"'], checkpoint, prompts='tww')


def test_scaled_rope(checkpoint):
    config = json.loads((checkpoint / 'config.json').read_text())
    config['text_config']['rope_parameters'].update(
        rope_type='yarn', factor=2.0, original_max_position_embeddings=32_768)
    (checkpoint / 'config.json').write_text(json.dumps(config))
    refused(['rope_type', 'yarn'], checkpoint)


@pytest.mark.parametrize(('option', 'value'), [
    ('quantization', 'int3'), ('quantization', 'NF4'), ('positions', 'sideways'),
    ('prompts', 'mine'), ('dtype', 'float8'), ('device', 'toaster')])
def test_unknown_options(option, value):
    refused([option, 'expected', repr(value)], 'tiny-random', **{option: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')
def test_cuda_without_cuda():
    refused(['CUDA', 'device="cpu"'], 'tiny-random', device='cuda')


def test_a_copy_without_the_embedded_model(monkeypatch, tmp_path):
    monkeypatch.setattr(marks, 'EMBEDDED', tmp_path / 'embedded')
    refused(['tww train', 'tiny-random'], 'embedded')


def test_too_little_memory_is_said_before_loading(checkpoint, monkeypatch):
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=1_000_000))
    refused(['GB are free', 'quantization="nf4"'], checkpoint)


def test_needed_memory_counts_weights_and_not_how_they_are_stored(checkpoint, monkeypatch):
    weights = sum(p.numel() for p in model().hf.parameters())
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=3 * weights))
    # Stored in four bytes a weight.
    assert load_model(str(checkpoint), dtype='bfloat16').dtype == torch.bfloat16
    refused([f'about {4 * weights / 1e9:.1f} GB', 'free memory'], checkpoint, dtype='float32')
