"""Roofline: what a step must move and compute, and how quick this machine can be at that.

In: a model and the spans of a step. Out: bytes, FLOPs, and the least time that they take here.

    bytes   weights of the layers as they are stored (4-bit ones with their scales), the output
            head when logits are wanted, keys and values of every block that a span attends to,
            once however many spans do, and those that are written. Activations are left out: they
            fit into caches.
    FLOPs   2 for each weight and token (for each row of logits in the head), 4 · H · D for each
            query, each key that it sees, and each layer
    bound   max(bytes / bandwidth, FLOPs / rate); measured: bandwidth by a copy that no cache
            holds (read + written), rate by one large matrix product in the model's dtype, both
            with the threads that are set now

A model that fits into a CPU's cache may be quicker than its bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from _models import synchronize
from _report import Report

from tww_ros.memory.block import KVBlock
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.run import Span

COPY_BYTES = {'cpu': 256 << 20, 'cuda': 1 << 30}
SIDE = {'cpu': 2_048, 'cuda': 8_192}
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """What was measured."""

    bytes_per_s: float
    flop_per_s: float


@dataclass(frozen=True)
class Work:
    """What one step must move and compute."""

    moved_bytes: int
    flop: int

    def bound_s(self, machine: Machine) -> float:
        """The least time."""
        return max(self.moved_bytes / machine.bytes_per_s, self.flop / machine.flop_per_s)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Bandwidth and matrix rate, best of some repeats."""
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = SIDE[device.type]
    left = torch.rand(side, side, device=device).to(dtype)
    copy_s = _best_s(device, lambda: target.copy_(source))
    product_s = _best_s(device, lambda: left @ left)
    return Machine(2 * source.nbytes / copy_s, 2 * side ** 3 / product_s)


def _best_s(device: torch.device, action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS + 1):
        synchronize(device)
        started_s = time.perf_counter()
        action()
        synchronize(device)
        seconds.append(time.perf_counter() - started_s)
    return min(seconds[1:])


def step_work(model: VideoLanguageModel, spans: Sequence[Span]) -> Work:
    """Of a step that is about to be run."""
    text, shape = model.hf.config.text_config, model.block_shape
    language_model, head = model.hf.model.language_model, model.hf.lm_head.weight
    rows = sum(len(span.run) for span in spans)
    logits = sum({'none': 0, 'all': len(span.run)}.get(span.logits, 1) for span in spans)
    layers = list(language_model.layers.parameters())
    moved = sum(map(stored_bytes, layers)) + stored_bytes(language_model.norm.weight)
    moved += stored_bytes(head) if logits else 0
    read = {}
    for span in spans:
        for part in span.view.parts:
            block = part.block
            size = (part.length * shape.token_bytes if isinstance(block, KVBlock)
                    else block.nbytes * part.length // block.length)
            read[id(block)] = max(size, read.get(id(block), 0))
    own = sum(span.block.length + len(span.run) for span in spans)
    moved += sum(read.values()) + own * shape.token_bytes
    linear = sum(count(weight) for weight in layers if weight.dim() > 1)
    seen = sum(len(span.run) * (span.view.tokens + span.block.length)
               + len(span.run) * (len(span.run) + 1) // 2 for span in spans)
    attention = 4 * text.num_attention_heads * shape.head_dim * shape.layers * seen
    return Work(moved, 2 * linear * rows + 2 * head.numel() * logits + attention)


def count(weight: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for; a packed one has more than it has elements."""
    state = getattr(weight, 'quant_state', None)
    return weight.numel() if state is None else math.prod(state.shape)


def stored_bytes(weight: torch.nn.Parameter) -> int:
    """Bytes of a parameter with the scales that belong to it."""
    size, state = weight.nbytes, getattr(weight, 'quant_state', None)
    while state is not None:
        size += sum(tensor.nbytes for tensor in (state.absmax, state.code) if tensor is not None)
        state = getattr(state, 'state2', None)
    scales = getattr(weight, 'SCB', None)
    return size + (scales.nbytes if scales is not None else 0)


def add_line(report: Report, name: str, work: Work, machine: Machine, measured_s: float) -> None:
    """The roofline line of one kind of step."""
    bound_s = work.bound_s(machine)
    report.add(f'{name}_moved_mb', work.moved_bytes / 1e6)
    report.add(f'{name}_gflop', work.flop / 1e9)
    report.add(f'{name}_reached_gb_per_s', work.moved_bytes / measured_s / 1e9)
    report.add(f'{name}_reached_tflop_per_s', work.flop / measured_s / 1e12)
    report.add(f'{name}_bound_ms', 1e3 * bound_s)
    report.add(f'{name}_ms', 1e3 * measured_s)
    report.add(f'{name}_to_bound', measured_s / bound_s)
