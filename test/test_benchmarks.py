"""Benchmarks are honest: peers say what stock `generate()` says, rooflines are hand counts.

No time is measured here but in two very small runs that must come to their end.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from reference import stock

from tww_ros import Engine, EngineConfig, Frame, Question, load_model
from tww_ros.config import NoteConfig, StepConfig, WatchConfig
from tww_ros.memory.quantization import QuantScheme, quantize
from tww_ros.memory.view import Entry, View, lay_out
from tww_ros.model.run import Span, TokenRun

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'
# What benchmarks/gpu.sh runs where there is no ROS.
SPEED = ('overlap', 'decode', 'scale')
TOKENS = 24
QUESTION = 'What do you see now?'
HALF_NS = 500_000_000
WATCH = WatchConfig(segment_s=2.0, min_pixels=1_024)
EMPTY = View((), 0, 0)


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    """A benchmark's own module; those that it imports are shared."""
    if name.startswith('_'):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f'benchmarks.{name}', BENCHMARKS / f'{name}.py')
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def tiny(quantization='none'):
    return load_model('tiny-random', quantization=quantization, device='cpu')


def generated(frames: list[np.ndarray]) -> list[int]:
    """Ids of stock `generate()`, greedy, without the end mark; two frames a second."""
    model = tiny()
    stamps_s = [number / 2 for number in range(len(frames))]
    given = stock.inputs(model.tokenizer, [(frames, stamps_s)], QUESTION)
    with model.stock_attention() as hf, torch.inference_mode():
        output = hf.generate(**given, max_new_tokens=TOKENS, do_sample=False)
    ids = output[0, given['input_ids'].shape[1]:].tolist()
    return ids[:-1] if ids[-1] in model.answer_ends else ids


def shot(images: list[np.ndarray]) -> list[Frame]:
    """Frames two a second, from some moment on."""
    return [Frame(10 ** 18 + number * HALF_NS, 'front', image)
            for number, image in enumerate(images)]


# Peers

@pytest.mark.parametrize(('seen', 'kept'), [(4, 4), (7, 4), (3, 4), (9, 64)])
def test_reprefill_and_recent_say_what_generate_says(seen, kept):
    """`recent` keeps 4: of seven frames the last four, as a clip that begins with them."""
    peers = module('_peers')
    images = stock.noise(seen, 64, 96, seed=seen)
    peer = peers.Reprefill(tiny(), WATCH, kept)
    for frame in shot(images):
        peer.see(frame)
    expected = generated(images[-kept:])
    assert list(peer.ask(QUESTION, TOKENS).ids) == expected
    assert len(set(expected)) > 4
    assert peer.ask(QUESTION, TOKENS).ids == tuple(expected)        # nothing stays of the first


def test_a_peer_and_the_engine_give_the_same_ids():
    """So both sides of a ratio do the same work."""
    peers = module('_peers')
    images = stock.noise(4, 64, 64, seed=2)
    peer = peers.Reprefill(tiny(), WATCH, 4)
    config = EngineConfig(watch=WATCH, note=NoteConfig(enabled=False),
                          step=StepConfig(deterministic=True))
    with Engine(tiny(), config) as engine:
        for frame in shot(images):
            peer.see(frame)
            engine.feed(frame)
        ours = engine.ask(Question(QUESTION, max_new_tokens=TOKENS)).result(60)
    assert peer.ask(QUESTION, TOKENS).ids == ours.token_ids


def test_interleaved_is_one_chat_that_forgets_questions():
    peers = module('_peers')
    images = stock.noise(6, 64, 64, seed=4)
    peer = peers.Interleaved(tiny(), WATCH, fps=2.0, note_tokens=5, filled=0)
    frames = shot(images)
    for patch in peers.pairs(frames):
        peer.stream.watch(patch, frames[0].stamp_ns)
    length = peer.stream.block.length
    assert list(peer.stream.ask(QUESTION, TOKENS).ids) == generated(images)
    assert peer.stream.block.length == length
    peer.note()
    style, encode = tiny().style, tiny().encode
    around = len(encode(style.note_prefix)) + len(encode(style.note_closer))
    assert peer.stream.block.length == length + around + 5


def test_a_filled_stream_is_as_long_as_a_watched_one():
    peers = module('_peers')
    peer = peers.Interleaved(tiny(), WATCH, fps=2.0, note_tokens=5, filled=300)
    header = len(tiny().encode(tiny().style.header))
    block = peer.stream.block
    assert (block.length, block.end) == (header + 300, header + 300)
    keys = block.layer_keys(3, block.length)[:, header:]
    assert 0.9 < float(keys.std()) < 1.1 and bool(torch.isfinite(keys).all())


# Roofline

HIDDEN, MIDDLE, LAYERS, VOCABULARY = 256, 768, 4, 320
QUERIES, KEYS = 8 * 32, 2 * 32
LINEAR = 2 * HIDDEN * QUERIES + 2 * HIDDEN * KEYS + 3 * HIDDEN * MIDDLE
NORMS = 2 * HIDDEN + 2 * 32
TOKEN_BYTES = 2 * LAYERS * KEYS * 4


def block_of(tokens: int, model, start: int = 0):
    block = model.new_block(start, capacity=tokens)
    model.step([Span(block, EMPTY, TokenRun.text([7] * tokens, start))])
    return block


def test_roofline_is_the_hand_count_of_tiny_random():
    model, roofline = tiny(), module('_roofline')
    view = lay_out([Entry(block_of(10, model), 'source'), Entry(block_of(6, model), 'source')],
                   model.scheme)
    block = model.new_block(16)
    work = roofline.step_work(model, [Span(block, view, TokenRun.text([1, 2, 3], 16), 'last')])
    weights = 4 * (LAYERS * (LINEAR + NORMS) + HIDDEN + VOCABULARY * HIDDEN)
    assert work.moved_bytes == weights + (10 + 6 + 3) * TOKEN_BYTES
    seen = 3 * 16 + (1 + 2 + 3)
    assert work.flop == (2 * LAYERS * LINEAR * 3 + 2 * VOCABULARY * HIDDEN
                         + 4 * QUERIES * LAYERS * seen)


def test_roofline_counts_a_shared_block_once_and_no_head_without_logits():
    model, roofline = tiny(), module('_roofline')
    view = lay_out([Entry(block_of(50, model), 'source')], model.scheme)
    spans = [Span(model.new_block(50), view, TokenRun.text([1], 50), 'none') for _ in range(8)]
    work = roofline.step_work(model, spans)
    assert work.moved_bytes == (4 * (LAYERS * (LINEAR + NORMS) + HIDDEN)
                                + (50 + 8) * TOKEN_BYTES)
    assert work.flop == 2 * LAYERS * LINEAR * 8 + 4 * QUERIES * LAYERS * 8 * 51


def test_roofline_of_packed_weights_and_quantized_blocks():
    model, roofline = tiny('nf4'), module('_roofline')
    whole = block_of(40, model)
    small = quantize(whole, QuantScheme(4))
    view = lay_out([Entry(small, 'source')], model.scheme)
    span = Span(model.new_block(40), view, TokenRun.text([1], 40), 'none')
    work = roofline.step_work(model, [span])
    norms = 4 * (LAYERS * NORMS + HIDDEN)
    weights = work.moved_bytes - norms - small.nbytes - TOKEN_BYTES
    # Half a byte each, a byte for 64, and little for the scales of scales and their tables.
    assert LAYERS * LINEAR * (1 / 2 + 1 / 64) < weights < LAYERS * LINEAR * 0.55
    assert work.flop == 2 * LAYERS * LINEAR + 4 * QUERIES * LAYERS * 41


def test_a_bound_is_the_slower_of_the_two():
    roofline = module('_roofline')
    machine = roofline.Machine(bytes_per_s=100.0, flop_per_s=1_000.0)
    assert roofline.Work(300, 1_000).bound_s(machine) == 3.0
    assert roofline.Work(300, 4_000).bound_s(machine) == 4.0


# Settings and runs

def test_the_big_shape_is_the_2b_models(monkeypatch):
    """1.7 billion weights in the language model, 0.4 in the vision tower, as it was released."""
    models = module('_models')
    tokenizer = models.byte_tokenizer()
    config = models.with_special_tokens(tokenizer, models.TEXT, models.VISION)
    with torch.device('meta'):
        model = models.AutoModelForImageTextToText.from_config(config)
    head = sum(p.numel() for p in model.model.language_model.parameters())
    assert head == 151_936 * 2_048 + 2_048 + 28 * (
        2 * 2_048 * 2_048 + 2 * 2_048 * 1_024 + 3 * 2_048 * 6_144 + 2 * 2_048 + 2 * 128)
    assert 2.1e9 < sum(p.numel() for p in model.parameters()) < 2.2e9


def test_live_settings_see_as_many_segments_as_in_training():
    models = module('_models')
    loaded = models.load(models.arguments('overlap', [], segments=9))
    assert loaded.targets == 'cpu' and loaded.weights in ('embedded', 'embedded-untrained')
    trained = EngineConfig.from_flat(loaded.model.settings)
    same, live = loaded.live(1.0, 1.5), loaded.live(10.0, 1.5)
    assert same.memory == trained.memory and same.note.window_tokens == trained.note.window_tokens
    # Ten frames a second for 1.5 s are eight patches; one a second is one.
    assert live.memory.resident_tokens == 8 * trained.memory.resident_tokens
    assert live.note.window_tokens == 8 * trained.note.window_tokens
    assert live.watch.sample_fps == 60.0


def test_a_film_goes_on_and_its_stamps_grow():
    camera = module('_camera')
    film = camera.Film(stock.noise(3, 32, 32), 'front')
    frames = [film.next(0.1) for _ in range(7)]
    assert [frame.stamp_ns for frame in frames] == [n * 10 ** 8 for n in range(1, 8)]
    assert np.array_equal(frames[0].image, frames[3].image)
    assert not np.array_equal(frames[0].image, frames[1].image)


def test_gaps_are_those_that_touch_the_time_asked_about():
    gaps = module('overlap').gaps
    assert gaps([0.0, 1.0, 3.0, 3.5, 9.0], 2.0, 4.0) == [2.0, 0.5, 5.5]
    assert gaps([0.0, 1.0, 3.0], 3.5, 4.0) == []


def test_the_plot_of_scale_is_drawn_from_few_points(tmp_path):
    scale = module('scale')
    cells = [scale.Cell(size, sessions, fps, size, 0.01 * sessions, 100.0, fps, 0)
             for size in (10, 100) for sessions in (1, 8) for fps in (0.0, 60.0)]
    file = tmp_path / 'plots' / 'scale.png'
    # The peer had no room beside the larger memory.
    scale.draw(cells, {(10, 'recent_4_frames'): 0.03}, 'none', file)
    with Image.open(file) as drawn:
        assert drawn.size[0] > 800


@pytest.mark.parametrize(('metrics', 'axes'), [
    ({f'kv_embedded_{bits}bit_turned_{what}': value for bits in (2, 3, 8) for what, value in
      (('times_smaller', 15 / bits), ('answers_agree', 1 - 0.1 / bits))}
     | {'kv_embedded_16bit_step_ms': 3.0, 'tabletop_dropped_share': 0.9,
        'tabletop_changes_kept_share': 0.99}, 2),
    ({f'{name}_bytes_hour_{hour}': 1e6 * hour for name in ('rss', 'device')
      for hour in range(1, 9)}, 1),
    ({'needle_accuracy': 1.0}, 0)])
def test_picture_of_memory_has_an_axis_for_each_part_measured(tmp_path, metrics, axes):
    file = tmp_path / 'memory.png'
    module('_picture').draw(metrics, file)
    assert file.is_file() == (axes > 0)
    if axes:
        with Image.open(file) as drawn:
            assert drawn.size[0] == 660 * axes


def test_benchmarks_of_speed_import_no_ros():
    """rclpy made unimportable, and nothing of it loaded."""
    program = ('import sys; sys.modules["rclpy"] = None; '
               f'sys.path.insert(0, {str(BENCHMARKS)!r}); '
               f'import {", ".join(SPEED)}; import tww_ros.cli')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          cwd=BENCHMARKS.parent, check=False)
    assert done.returncode == 0, done.stderr


def test_gpu_script_is_shell_and_names_benchmarks_that_exist():
    script = BENCHMARKS / 'gpu.sh'
    assert subprocess.run(['bash', '-n', str(script)], check=False).returncode == 0
    for name in SPEED:
        assert name in script.read_text() and (BENCHMARKS / f'{name}.py').is_file()


def test_decode_comes_to_its_end(tmp_path, monkeypatch):
    """The tiny model, very small; the JSON says whose weights they are and has every number."""
    decode, roofline = module('decode'), module('_roofline')
    monkeypatch.setattr(module('_scene'), 'NOTE_TOKENS', 400)
    for name, value in (('WATCHED', 3), ('ANSWER_TOKENS', 4), ('QUICK_REPEATS', (2, 1))):
        monkeypatch.setattr(decode, name, value)
    monkeypatch.setitem(roofline.COPY_BYTES, 'cpu', 1 << 20)
    monkeypatch.setitem(roofline.SIDE, 'cpu', 64)
    file = tmp_path / 'decode.json'
    assert decode.main(['--quick', '--model', 'tiny-random', '--device', 'cpu',
                        '--json', str(file)]) == 0
    told = json.loads(file.read_text())
    assert told['weights'] == 'tiny-random' and told['targets'] == {}
    for name in ('packed_1_answers_throughput', 'decode_1_sessions_to_bound',
                 'answer_tokens_per_s_8_sessions_to_1', 'dispatches_decode_8_sessions',
                 'share_of_step_attention'):
        assert told['metrics'][name] > 0, name


@pytest.mark.parametrize('positions', ['continuous', 'decoupled'])
def test_quantized_memory_is_compared_to_its_end(monkeypatch, positions):
    """A few questions over memory of the tiny model; full precision agrees with itself."""
    kv, report = module('_kv'), module('_report').Report('kv')
    monkeypatch.setattr(kv, 'QUICK', kv.Protocol(seed=1, questions=2, streams=1, segments=6,
                                                 moments=2))
    monkeypatch.setattr(kv, 'BITS', (3,))
    model = load_model('tiny-random', device='cpu', positions=positions)
    kv.measure_model(report, 'tiny', model, quick=True)
    assert report.metrics['kv_tiny_3bit_turned_times_smaller'] > 4
    assert report.metrics['kv_tiny_3bit_turned_divergence_nats'] > 0
    study = kv.watch(model, kv.EngineConfig.from_flat({**kv.TINY, **kv.OFFLINE}), kv.QUICK)
    exact = kv.answer(study, {})
    for one, rows in zip(study.asked, exact, strict=True):
        # What the engine wrote is what is read here as the likeliest, token by token.
        assert tuple(rows.argmax(-1)[:len(one.answer)].tolist()) == one.answer
