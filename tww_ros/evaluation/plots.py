"""Pictures of an evaluation: how far probabilities can be trusted, and how memory fades.

In: an Evaluation and a folder. Out: reliability.png (choices of each row that writes notes: share
right against the probability told) and distance.png (backward questions: share right against how
many segments back the proof lies).
"""

from __future__ import annotations

from pathlib import Path

from tww_ros.evaluation.measures import by_distance, choices
from tww_ros.evaluation.rows import Evaluation
from tww_ros.evaluation.scoring import calibration_error, reliability, share

BINS = 10


def draw_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Draw both into the folder, which is made; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    files = [folder / 'reliability.png', folder / 'distance.png']
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(6, 7.5), layout='constrained',
                                             height_ratios=(3, 1), sharex=True)
    upper.plot((0, 1), (0, 1), color='grey', linestyle=':', label='as told')
    for row in evaluation.rows:
        tops, verdicts = choices(evaluation.outcomes(row, row.lot))
        if not tops:
            continue
        bins = reliability(tops, verdicts, BINS)
        error = calibration_error(tops, verdicts, BINS)
        line, = upper.plot([part.probability for part in bins],
                           [part.right.value for part in bins], marker='o', markersize=4,
                           label=f'{row.name} (ECE {error:.3f}, n {len(tops)})')
        lower.hist(tops, bins=BINS, range=(0, 1), histtype='step', color=line.get_color())
    upper.set(ylabel='share right', title='choices', xlim=(0, 1.01), ylim=(0, 1.01))
    lower.set(xlabel='probability of the answer', ylabel='answers', yscale='log')
    upper.legend(fontsize='small')
    upper.grid(alpha=0.3)
    figure.savefig(files[0], dpi=110)
    pyplot.close(figure)

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    for shift, row in enumerate(evaluation.rows):
        asked = [o for o in evaluation.outcomes(row) if o.planned.lot in (row.lot, 'far')]
        points = []
        for index, (_, part) in enumerate(by_distance(asked)):
            right = share(outcome.right for outcome in part)
            if right.count:
                points.append((index + 0.04 * shift, right.value, right.interval))
        if points:
            at, values, intervals = zip(*points, strict=True)
            spread = [[value - low for value, (low, _) in zip(values, intervals, strict=True)],
                      [high - value for value, (_, high) in zip(values, intervals, strict=True)]]
            axis.errorbar(at, values, spread, marker='o', markersize=4, capsize=2, label=row.name)
            axis.legend(fontsize='small')
    names = [name.replace('_up', ' or more').replace('_', '–') for name, _ in by_distance(())]
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel='segments from the newest one back to the proof', ylabel='share right',
             title='backward questions, 95 % intervals', ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    figure.savefig(files[1], dpi=110)
    pyplot.close(figure)
    return files
