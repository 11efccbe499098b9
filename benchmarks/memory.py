"""Segment memory in numbers: bytes, tokens, needles, hours, recall, crashes, restarts.

    scripts/bench memory --quick                       some minutes
    scripts/bench memory --parts needles --json FILE   one part of it
    scripts/bench memory --parts --plot PNG --beside FILE...   only a picture of such reports

    part      asks                                                                     module
    kv        how much smaller quantized KV is, and what it does to answers            _kv
    drop      how many vision tokens the drop saves, and what it does to answers       _drop, here
    needles   questions about seconds in hours; first tokens late and early            _long
    hours     bytes of memory and process, hour by hour                                _long
    recall    whether the search brings back what proves an answer                     _find
    crash     kill -9 while writing, and while watching                        _crash, _killed
    reopen    first answers after a restart                                            _reopen

Where answers count, the embedded model gives them; without it those parts are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from _crash import measure_crash
from _drop import THRESHOLD, measure_drop
from _find import measure_recall
from _killed import measure_killed_engine
from _kv import EMBEDDED, measure_kv
from _long import measure_hours, measure_needles
from _picture import draw
from _reopen import measure_reopening
from _report import Report

from tww_ros import load_model
from tww_ros.evaluation.protocol import Protocol
from tww_ros.evaluation.rows import EvalOptions, evaluate
from tww_ros.evaluation.scoring import share
from tww_ros.model.protocol import StepModel

# Four segments of the embedded model: half of what it sees, as by default.
RECENT_TOKENS = 88
PARTS = ('kv', 'drop', 'needles', 'hours', 'recall', 'crash', 'reopen')
# All budgets on: a small device, so that blocks are quantized and moved, notes within theirs.
BUDGETS = {'memory.device_bytes': 4_000_000, 'memory.kv_bits': 3,
           'memory.quantized_bytes': 1_000_000, 'memory.host_bytes': 1_000_000}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog='scripts/bench memory')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--json', type=Path, metavar='FILE')
    parser.add_argument('--parts', nargs='*', choices=PARTS, default=PARTS)
    parser.add_argument('--plot', type=Path, metavar='PNG')
    parser.add_argument('--beside', type=Path, metavar='FILE', nargs='+', default=[],
                        help='reports of other parts, for the plot')
    options = parser.parse_args(argv)
    report, quick = Report('memory'), options.quick
    model = load_model('embedded') if EMBEDDED.is_file() else None
    for part in options.parts:
        if part == 'kv':
            measure_kv(report, quick)
        elif part == 'crash':
            measure_crash(report, quick)
            measure_killed_engine(report, quick)
        elif part == 'drop':
            measure_drop(report, quick)
            if model is not None:
                measure_drop_accuracy(report, model, quick)
        elif part == 'recall':
            measure_recall(report, quick)
        elif model is None:
            print(f'{part}: left out, there is no embedded model in this copy')
        else:
            measure = {'needles': measure_needles, 'hours': measure_hours,
                       'reopen': measure_reopening}[part]
            measure(report, model, BUDGETS, quick)
    if options.plot:
        others = [json.loads(file.read_text())['metrics'] for file in options.beside]
        draw({name: value for metrics in (*others, report.metrics)
              for name, value in metrics.items()}, options.plot)
    return report.finish(options.json)


def measure_drop_accuracy(report: Report, model: StepModel, quick: bool) -> None:
    """The same questions with and without the drop: tokens that leave with their segment's youth,
    with segments of the past brought back as well, and tokens that are never read."""
    protocol = Protocol(seed=21, questions=100 if quick else 1_000, streams=4 if quick else 40)
    drop = {'watch.drop_threshold': THRESHOLD}
    old = {**drop, 'memory.recent_tokens': RECENT_TOKENS}
    accuracy = {}
    for name, settings in (('off', {}), ('old', {**old, 'memory.retrieved_segments': 0}),
                           ('old_recalled', old),
                           ('unread', {**drop, 'watch.drop_unread': True})):
        options = EvalOptions('embedded', protocol, rows=('single',), settings=settings)
        evaluation = evaluate(options, lambda _: model)
        accuracy[name] = share(outcome.right for outcome in
                               evaluation.outcomes(evaluation.rows[0])).value
        report.add(f'drop_{name}_accuracy', accuracy[name])
    for name in ('old', 'old_recalled', 'unread'):
        report.add(f'drop_{name}_accuracy_kept', accuracy[name] / max(accuracy['off'], 1e-9))
    report.target('drop_old_accuracy_kept', '>=', 0.98)
