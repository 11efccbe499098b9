"""Models for benchmarks of speed, their engine settings, options and the end of a report.

In: --model. Out: the model, which weights it has, and what is asked of it.

    embedded            the model that ships; where it is not there, the same shape with random
                        weights, and the JSON says so: as quick, but its words mean nothing
    qwen3vl-2b-random   the shape of Qwen3-VL-2B-Instruct with random weights; its tokenizer has
                        bytes only, so texts are some three times as long as the released one's
    anything else       as `load_model` takes it

Neither random weights end a note when it is said, nor trained ones in windows that are wider than
those that they know, so notes are cut at MOST_NOTE_TOKENS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _report import Report
from transformers import AutoModelForImageTextToText

from tww_ros import load_model
from tww_ros.config import EngineConfig
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.marks import EMBEDDED
from tww_ros.model.tiny import byte_tokenizer, with_special_tokens
from tww_ros.training.embedded import untrained

BIG = 'qwen3vl-2b-random'
# Sizes of Qwen/Qwen3-VL-2B-Instruct.
TEXT = {
    'vocab_size': 151_936, 'hidden_size': 2_048, 'intermediate_size': 6_144,
    'num_hidden_layers': 28, 'num_attention_heads': 16, 'num_key_value_heads': 8, 'head_dim': 128,
    'initializer_range': 0.02, 'max_position_embeddings': 262_144,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 5_000_000.0,
                        'mrope_section': [24, 20, 20], 'mrope_interleaved': True},
}
VISION = {
    'depth': 24, 'hidden_size': 1_024, 'intermediate_size': 4_096, 'num_heads': 16,
    'out_hidden_size': 2_048, 'num_position_embeddings': 2_304,
    'deepstack_visual_indexes': [5, 11, 17], 'initializer_range': 0.02,
}
MOST_NOTE_TOKENS = 12
# Of the pictures: what the small models were made for, and 14 × 14 tokens.
SMALL_PX, BIG_PX = 192, 448
# tiny-random brings no settings: pictures and memory are about as small as the embedded model's.
SMALL = {'watch.min_pixels': 9_216, 'watch.max_pixels': 9_216, 'memory.resident_tokens': 1_024}
WINDOWS = ('memory.read_window_tokens', 'memory.resident_tokens', 'note.window_tokens')
FASTEST_FPS = 60.0


@dataclass(frozen=True)
class Loaded:
    """weights: whose they are. targets: which of the two columns holds, 'cpu' or 'cuda', or ''."""

    model: VideoLanguageModel
    weights: str
    targets: str
    settings: dict[str, Any]
    picture_px: int

    def live(self, fps: float, segment_s: float) -> EngineConfig:
        """The engine's settings for a camera of `fps` whose every frame is watched.

        Where the model was trained with windows of a few patches, they hold as many segments as
        then: a segment has more patches now.
        """
        wider = {}
        if self.model.settings:
            trained = EngineConfig.from_flat(self.model.settings).watch
            then = math.ceil(trained.sample_fps * trained.segment_s / 2)
            now = math.ceil(fps * segment_s / 2)
            wider = {name: self.settings[name] * max(1, math.ceil(now / then))
                     for name in WINDOWS if name in self.settings}
        return EngineConfig.from_flat({**self.settings, **wider, 'watch.sample_fps': FASTEST_FPS,
                                       'watch.segment_s': segment_s})

    def target(self, report: Report, name: str, sign: str, cpu: float | None,
               cuda: float | None) -> None:
        """Require what is asked of this model on this device; None = only reported."""
        limit = {'cpu': cpu, 'cuda': cuda}.get(self.targets)
        if limit is not None and name in report.metrics:
            report.target(name, sign, limit)


def arguments(name: str, argv: Sequence[str], segments: int = 0, plot: bool = False,
              parts: Sequence[str] = ()) -> argparse.Namespace:
    """--quick, --json, --model, --quantization, --device; where it has them --segments, --plot,
    --parts."""
    parser = argparse.ArgumentParser(prog=f'scripts/bench {name}')
    parser.add_argument('--quick', action='store_true',
                        help='fewer repeats: a few minutes on 2 cores')
    parser.add_argument('--json', type=Path, metavar='FILE')
    parser.add_argument('--model', default='embedded',
                        help=f'embedded (default), {BIG}, tiny-random, or a checkpoint')
    parser.add_argument('--quantization', default='none', choices=('none', 'int8', 'nf4'))
    parser.add_argument('--device', default='auto')
    if segments:
        parser.add_argument('--segments', type=int, default=segments, metavar='N',
                            help='largest memory (default: %(default)d)')
    if plot:
        parser.add_argument('--plot', type=Path, metavar='PNG')
    if parts:
        parser.add_argument('--parts', nargs='+', choices=parts, default=parts)
    return parser.parse_args(argv)


def load(options: argparse.Namespace) -> Loaded:
    """The model of --model."""
    name, quantization, device = options.model, options.quantization, options.device
    weights = name
    if name == BIG:
        with tempfile.TemporaryDirectory() as folder:
            save_random(Path(folder))
            model = load_model(folder, quantization, device)
        model.name = name
    elif name == 'embedded' and not (EMBEDDED / 'config.json').is_file():
        model, weights = untrained(), 'embedded-untrained'
    else:
        model = load_model(name, quantization, device)
    on_cuda = model.device.type == 'cuda'
    settings = {**({} if name == BIG else SMALL), **model.settings,
                'note.max_new_tokens': MOST_NOTE_TOKENS}
    targets = ''
    if on_cuda and (name, quantization) == (BIG, 'nf4'):
        targets = 'cuda'
    elif not on_cuda and name == 'embedded':
        targets = 'cpu'
    return Loaded(model, weights, targets, settings, BIG_PX if name == BIG else SMALL_PX)


def save_random(folder: Path) -> None:
    """A checkpoint of the 2B shape with random weights, in bfloat16: 4.3 GB."""
    tokenizer = byte_tokenizer()
    config = with_special_tokens(tokenizer, TEXT, VISION)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def endless(model: VideoLanguageModel) -> Iterator[None]:
    """Answers go on to their cap, so that all have the same length."""
    ends, model.answer_ends = model.answer_ends, frozenset()
    try:
        yield
    finally:
        model.answer_ends = ends


def synchronize(device: torch.device) -> None:
    """Wait for the device: what was started counts."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def finish(report: Report, options: argparse.Namespace, loaded: Loaded) -> int:
    """Print, write the JSON and say in it what was run; the exit code."""
    print(f'weights: {loaded.weights}; {loaded.model.describe()}')
    code = report.finish(options.json)
    if options.json is not None:
        told = json.loads(options.json.read_text())
        told |= {'weights': loaded.weights, 'model': loaded.model.describe(),
                 'quick': options.quick}
        options.json.write_text(json.dumps(told, indent=2) + '\n')
    return code
