"""Loss and held-out accuracy of a training run as a picture, from its log.jsonl."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

SHOWN = {'note': 'notes', 'answer': 'answers with reasoning', 'final:open': 'open answers',
         'final:choice': 'choices'}


def draw_curves(log: Path, picture: Path) -> None:
    """Read the log, write the PNG; a log without entries draws nothing."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    entries = [json.loads(line) for line in log.read_text().splitlines()]
    if not entries:
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout='constrained')
    left.semilogy([e['step'] for e in entries], [e['loss'] for e in entries])
    left.set(xlabel='step', ylabel='loss (cross-entropy per token)', title='training')
    checked = [e for e in entries if 'held_out' in e]
    for kind, label in SHOWN.items():
        points = [(e['step'], 100 * e['held_out'][kind]) for e in checked
                  if kind in e['held_out']]
        if points:
            right.plot(*zip(*points, strict=True), marker='.', label=label)
    right.set(xlabel='step', ylabel='wholly right (%)', title='held out', ylim=(0, 101))
    if checked:
        right.legend(loc='lower right')
    changes = [e['step'] for e, after in itertools.pairwise(entries)
               if e['stage'] != after['stage']]
    for axis in (left, right):
        axis.grid(alpha=0.3)
        for step in changes:
            axis.axvline(step, color='grey', linestyle=':')
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
