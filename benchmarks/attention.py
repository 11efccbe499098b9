"""Attention backends beside each other: which is quickest over which view, in one layer.

    scripts/bench attention --quick --json FILE
    scripts/bench attention --device cuda --dtype bfloat16

Every row is one layer's attention of one step: `decode 1` and `decode 8` of so many sessions that
see the same memory, each from another place; `read 64` of one span of 64 tokens. Views:

    few large      4 parts of 1,000 tokens
    many small     200 parts of 20 tokens, every one at a shift of its own
    in pages       the same, joined as `model.joining` does
    N bits         10 quantized parts of 400 tokens

Beside the backends stand what they replace: `apart`, the sessions one after another, each reading
the keys for itself; and `restored`, quantized parts brought back to full precision first. All are
run in turn, and the median counts. Random numbers; what they say is tested elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _report import Report, median
from transformers import Qwen3VLTextConfig

from tww_ros.engine.cpu import limit_threads
from tww_ros.errors import ConfigError
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.quantization import BITS, Block, QuantizedBlock, QuantScheme, quantize
from tww_ros.memory.view import Entry, Part, View, lay_out
from tww_ros.model.attention import BACKENDS, choose_backend
from tww_ros.model.joining import Pages
from tww_ros.model.planning import StepPlan, plan_step
from tww_ros.model.positions import MRope
from tww_ros.model.run import Span, TokenRun

# (query heads, key-value heads, head size): of the embedded model, and of Qwen3-VL-2B.
SHAPES = {'embedded': (8, 2, 32), '2b': (16, 8, 128)}
WORK = {'decode 1': (1, 1), 'decode 8': (8, 1), 'read 64': (1, 64)}
VIEWS = {'few large': (4, 1_000, 0), 'many small': (200, 20, 0), 'in pages': (200, 20, 0),
         **{f'{bits} bits': (10, 400, bits) for bits in BITS}}


class Case(NamedTuple):
    """One kind of memory, and who looks at it."""

    shape: BlockShape
    heads: int
    parts: tuple[Part, ...]
    sessions: int
    tokens: int
    pages: Pages | None
    rope: MRope

    def plans(self, backend: str, parts: Sequence[Part], *, apart: bool) -> list[StepPlan]:
        """One step, or one for each session."""
        spans = []
        for session in range(self.sessions):
            moved = tuple(Part(part.block, part.length, part.shift + 3 * session, 0)
                          for part in parts)
            block = KVBlock(self.shape, start=9_000)
            spans.append(Span(block, View(moved, 9_000, 9_000),
                              TokenRun.text([0] * self.tokens, 9_000)))
        attend = choose_backend(backend, self.shape, self.heads)

        def parts_of(view: View) -> Sequence[Part]:
            return view.parts if self.pages is None else self.pages.join(view.parts)

        return [plan_step(some, self.rope, self.shape.dtype, self.shape.device, attend, parts_of)
                for some in ([[span] for span in spans] if apart else [spans])]

    def runner(self, backend: str, *, apart: bool = False) -> Callable[[], None]:
        """What does it once."""
        plans = self.plans(backend, self.parts, apart=apart)
        query = torch.randn(self.heads, self.sessions * self.tokens, self.shape.head_dim,
                            dtype=self.shape.dtype, device=self.shape.device)
        queries = [query[:, :sum(len(place.span.run) for place in plan.spans)] for plan in plans]

        def once() -> None:
            for plan, own in zip(plans, queries, strict=True):
                plan.attend(plan, own, 0, self.shape.head_dim ** -0.5)
        return once

    def restoring(self, backend: str) -> Callable[[], None]:
        """Quantized parts are brought back, then attended to like others."""
        full = tuple(Part(_restored(part.block), part.length, part.shift, 0)
                     for part in self.parts)
        attend = Case(self.shape, self.heads, full, self.sessions, self.tokens, None,
                      self.rope).runner(backend)

        def once() -> None:
            for part in self.parts:
                part.block.layer_keys(0, part.length)
                part.block.layer_values(0, part.length)
            attend()
        return once


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog='scripts/bench attention')
    parser.add_argument('--quick', action='store_true', help='fewer repeats: one minute')
    parser.add_argument('--json', type=Path, metavar='FILE')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    limit_threads(device, 0)
    report, rows = Report('attention'), []
    with torch.inference_mode():
        for name, case in cases(device, getattr(torch, options.dtype)):
            took_ms = measure(case, 7 if options.quick else 25)
            for kind, ms in took_ms.items():
                report.add(f'{name} {kind} ms'.replace(' ', '_'), ms)
            rows.append((name, took_ms))
    print_table(rows)
    return report.finish(options.json, shown=())


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Every view with every kind of work, by name."""
    for (label, (heads, kv_heads, size)), (view, (count, tokens, bits)) in itertools.product(
            SHAPES.items(), VIEWS.items()):
        shape = BlockShape(1, kv_heads, size, dtype, device)
        section = [size // 2 - 2 * (size // 6), size // 6, size // 6]
        rope = MRope(Qwen3VLTextConfig(head_dim=size, rope_parameters={
            'rope_type': 'default', 'rope_theta': 1e4, 'mrope_section': section}), device)
        generator = np.random.default_rng(0)
        parts = lay_out([Entry(_filled(shape, tokens, int(generator.integers(5_000)), bits),
                               'source', number) for number in range(count)], 'continuous').parts
        for work, (sessions, rows) in WORK.items():
            yield f'{label} {view} {work}', Case(
                shape, heads, parts, sessions, rows,
                Pages(rope, shape) if view == 'in pages' else None, rope)


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Milliseconds of one layer, by backend."""
    backends = [name for name in BACKENDS if _works(name, case.shape)]
    runners = {name: case.runner(name) for name in backends}
    if case.sessions > 1:
        runners['apart'] = case.runner(backends[-1], apart=True)
    if isinstance(case.parts[0].block, QuantizedBlock):
        runners['restored'] = case.restoring(backends[-1])
    took: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(1 + repeats):
        for name, once in runners.items():
            _wait(case.shape.device)
            start = time.perf_counter()
            once()
            _wait(case.shape.device)
            took[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(times[1:]) for name, times in took.items()}


def print_table(rows: Sequence[tuple[str, dict[str, float]]]) -> None:
    """As in docs/performance.md: ms of one layer, the quickest in bold."""
    columns = list(dict.fromkeys(kind for _, took in rows for kind in took))
    print('| ms a layer |', *(f'{column} |' for column in columns))
    print('|---|' + '---|' * len(columns))
    for name, took in rows:
        best = min(took.values())
        told = [f'**{took[kind]:.2f}**' if took.get(kind) == best else
                f'{took[kind]:.2f}' if kind in took else '' for kind in columns]
        print(f'| {name} |', *(f'{text} |' for text in told))


def _filled(shape: BlockShape, tokens: int, start: int, bits: int) -> Block:
    block = KVBlock(shape, start=start, capacity=tokens)
    size = (shape.kv_heads, tokens, shape.head_dim)
    options = {'dtype': shape.dtype, 'device': shape.device}
    block.write(0, torch.randn(size, **options), torch.randn(size, **options))
    block.commit(tokens, start + tokens)
    block.seal()
    return quantize(block, QuantScheme(bits)) if bits else block


def _restored(block: QuantizedBlock) -> KVBlock:
    return KVBlock.from_state(block.shape, block.start, block.end, {
        'keys': block.layer_keys(0, block.length)[None],
        'values': block.layer_values(0, block.length)[None]})


def _works(backend: str, shape: BlockShape) -> bool:
    try:
        choose_backend(backend, shape, shape.kv_heads)
    except ConfigError:
        return False
    return True


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
