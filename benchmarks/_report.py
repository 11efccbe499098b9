"""What every benchmark shares: medians, a table, a flat JSON with machine, versions and commit.

Exit code 1 when a target is missed. Times on a shared machine are noisy: compare ratios of things
that were measured in turn in one run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import operator
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
COMPARE = {'<=': operator.le, '>=': operator.ge, '==': operator.eq}
PACKAGES = ('torch', 'transformers', 'bitsandbytes', 'numpy', 'ros-rclpy', 'ros-jazzy-rclpy',
            'rosbags', 'av')


class Report:
    """Collects metrics; name → number, with a unit in the name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.metrics: dict[str, float] = {}
        self.targets: dict[str, tuple[str, float]] = {}

    def add(self, name: str, value: float) -> None:
        """Add one number."""
        self.metrics[name] = float(value)

    def target(self, name: str, sign: str, value: float) -> None:
        """Require a metric to be <=, >= or == a value."""
        self.targets[name] = (sign, value)

    def finish(self, file: Path | None) -> int:
        """Print the table, write the JSON; 1 when a target is missed, else 0."""
        table = Table(title=f'benchmark {self.name}')
        table.add_column('metric')
        table.add_column('value', justify='right')
        table.add_column('target')
        missed = 0
        for name, value in self.metrics.items():
            sign, wanted = self.targets.get(name, ('', 0.0))
            met = not sign or COMPARE[sign](value, wanted)
            missed += not met
            note = f'{sign} {wanted:g}{"" if met else "  MISSED"}' if sign else ''
            table.add_row(name, f'{value:,.4g}' if abs(value) < 1e4 else f'{value:,.0f}', note)
        Console(soft_wrap=True).print(table)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = {
                'benchmark': self.name, 'metrics': self.metrics,
                'targets': {name: list(target) for name, target in self.targets.items()},
                'machine': machine(), 'versions': versions(), 'commit': commit()}
            file.write_text(json.dumps(content, indent=2) + '\n')
        return int(missed > 0)


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


def machine() -> str:
    """Processor, cores, memory."""
    processor = platform.machine()
    with open('/proc/cpuinfo') as lines:
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    processor = names[0] if names else processor
    memory_gb = psutil.virtual_memory().total / 1e9
    return f'{processor}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {platform.system()}'


def versions() -> dict[str, str]:
    """Python and the packages that matter."""
    found = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that was measured, with + when the tree had other changes than results."""
    def git(*words: str) -> str:
        return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True,
                              timeout=30, check=True).stdout.strip()
    try:
        changed = '+' if git('status', '--porcelain', ':!benchmarks/results') else ''
        return git('rev-parse', '--short=12', 'HEAD') + changed
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
