"""What every benchmark shares: its options, medians, and the report (`tww_ros.evaluation.report`).

Exit code 1 when a target is missed. Times on a shared machine are noisy: compare ratios of things
that were measured in turn in one run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from tww_ros.evaluation.report import Report

__all__ = ['Report', 'arguments', 'median', 'percentile']


def arguments(name: str, argv: Sequence[str]) -> argparse.Namespace:
    """--quick and --json FILE."""
    parser = argparse.ArgumentParser(prog=f'scripts/bench {name}')
    parser.add_argument('--quick', action='store_true',
                        help='fewer repeats: a few minutes on 2 cores')
    parser.add_argument('--json', type=Path, metavar='FILE')
    return parser.parse_args(argv)


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
