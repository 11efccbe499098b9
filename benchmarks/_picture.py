"""What `scripts/bench memory` measured as one picture.

In: metrics of its report, by name. Out: a PNG with an axis for each part whose metrics are there:
answers that stay as they are against how much smaller keys and values get; changes kept against
tokens dropped; bytes by the hour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _drop import DROPPED_TARGET, OTHER_THRESHOLDS

Metrics = Mapping[str, float]
SCHEMES = {'turned': ('turned, then even steps (ours)', 'o-'),
           'recent': ('the same, newest segments spared (as the engine does)', 's-'),
           'channel_token': ('ranges: keys by channel, values by token', '^:'),
           'channel_channel': ('ranges: both by channel', 'v:'),
           'token_token': ('ranges: both by token', 'x:'),
           'before_token': ('ranges: keys by channel before rotation', 'd:')}
MIB = 2 ** 20


def draw(metrics: Metrics, picture: Path) -> None:
    """Draw what there is; nothing when no part of it was measured."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    parts = [part for part in (draw_kv, draw_drop, draw_hours) if part(metrics, None)]
    if not parts:
        return
    figure, axes = pyplot.subplots(1, len(parts), figsize=(6 * len(parts), 4.6), squeeze=False,
                                   layout='constrained')
    for part, axis in zip(parts, axes[0], strict=True):
        part(metrics, axis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def draw_kv(metrics: Metrics, axis: Any) -> bool:
    """Agreement of answers against how many times smaller, one line a scheme."""
    name = 'embedded' if 'kv_embedded_16bit_step_ms' in metrics else 'tiny_random'
    lines = {}
    for scheme in SCHEMES:
        starts = {bits: f'kv_{name}_{bits}bit_{scheme}' for bits in
                  numbers(metrics, rf'kv_{name}_(\d+)bit_{scheme}_answers_agree')}
        lines[scheme] = sorted((metrics[f'{start}_times_smaller'],
                                metrics[f'{start}_answers_agree'], bits)
                               for bits, start in starts.items())
    if axis is None or not any(lines.values()):
        return any(lines.values())
    for scheme, line in lines.items():
        label, style = SCHEMES[scheme]
        axis.plot([smaller for smaller, *_ in line], [100 * agree for _, agree, _ in line], style,
                  label=label)
    for smaller, agree, bits in lines['turned']:
        axis.annotate(f'{bits} bits', (smaller, 100 * agree), textcoords='offset points',
                      xytext=(4, -12))
    axis.axvline(5.02, color='grey', linestyle='--', linewidth=1)
    axis.axhline(99, color='grey', linestyle='--', linewidth=1)
    axis.set(xlabel='times smaller than bfloat16', ylabel='answers that stay as they are (%)',
             title='quantized keys and values')
    return True


def draw_drop(metrics: Metrics, axis: Any) -> bool:
    """Changes kept against tokens dropped, by threshold."""
    def line(name: str) -> list[tuple[float, float]]:
        ends = ['', *(f'_at_{threshold:.2f}' for threshold in OTHER_THRESHOLDS)]
        return sorted((100 * metrics[f'{name}_dropped_share{end}'],
                       100 * metrics[f'{name}_changes_kept_share{end}']) for end in ends
                      if f'{name}_changes_kept_share{end}' in metrics)

    found = line('tabletop')
    if axis is None or not found:
        return bool(found)
    axis.plot(*zip(*found, strict=True), 'o-', label='tabletop, by threshold')
    if 'vtest_dropped_share' in metrics:
        axis.axvline(100 * metrics['vtest_dropped_share'], color='C1',
                     label='vtest.avi, default threshold')
    axis.axvline(100 * DROPPED_TARGET, color='grey', linestyle='--', linewidth=1)
    axis.set(xlabel='vision tokens dropped (%)', ylabel='changes of the table kept (%)',
             title='token drop')
    return True


def draw_hours(metrics: Metrics, axis: Any) -> bool:
    """Bytes at the end of each hour, relative to the first."""
    hours = numbers(metrics, r'rss_bytes_hour_(\d+)')
    if axis is None or not hours:
        return bool(hours)
    for name, label, marker in (('rss', 'process (RSS)', 'o-'),
                                ('device', 'keys and values on the device', 's-')):
        values = [metrics[f'{name}_bytes_hour_{hour}'] for hour in hours]
        axis.plot(hours, [100 * value / values[0] for value in values], marker,
                  label=f'{label}: {values[0] / MIB:.1f} MiB after hour 1')
    axis.axhspan(95, 105, color='grey', alpha=0.15)
    axis.set(xlabel='hours of stream', ylabel='bytes (% of hour 1)', title='memory by the hour',
             ylim=(80, 120))
    return True


def numbers(metrics: Metrics, pattern: str) -> list[int]:
    """The number that stands in the place of the pattern's group, over all names, in order."""
    matches: list[re.Match[str] | None] = [re.fullmatch(pattern, name) for name in metrics]
    return sorted(int(match[1]) for match in matches if match)
