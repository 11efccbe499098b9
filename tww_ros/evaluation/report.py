"""A flat report of numbers: metrics, targets, machine, versions, commit.

In: named numbers, and which of them must be how large. Out: a table, a JSON file, and exit code 1
when a target is missed. Benchmarks and `tww eval` write the same form.
"""

from __future__ import annotations

import importlib.metadata
import json
import operator
import os
import platform
import subprocess
from collections.abc import Collection
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
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

    def finish(self, file: Path | None, shown: Collection[str] | None = None) -> int:
        """Print the table (only of the metrics `shown`), write the JSON; 1 when a target is
        missed, else 0."""
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
            if shown is None or name in shown:
                table.add_row(name, f'{value:,.4g}' if abs(value) < 1e4 else f'{value:,.0f}',
                              note)
        Console(soft_wrap=True).print(table)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = {
                'benchmark': self.name, 'metrics': self.metrics,
                'targets': {name: list(target) for name, target in self.targets.items()},
                'machine': machine(), 'versions': versions(), 'commit': commit()}
            file.write_text(json.dumps(content, indent=2) + '\n')
        return int(missed > 0)


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
    if not (ROOT / '.git').exists():
        # Installed: a repository further up would be another one.
        return 'unknown'

    def git(*words: str) -> str:
        return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True,
                              timeout=30, check=True).stdout.strip()
    try:
        changed = '+' if git('status', '--porcelain', ':!benchmarks/results') else ''
        return git('rev-parse', '--short=12', 'HEAD') + changed
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
