"""What was measured, behind a checkpoint's model card.

In: the numbers of an evaluation and a checkpoint's folder. Out: a section of its README.md, in the
place of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tww_ros.errors import ConfigError
from tww_ros.evaluation.report import Report
from tww_ros.evaluation.scoring import Share

BEGIN, END = '<!-- measured by tww eval -->\n', '<!-- end of the measurements -->\n'
# Metric → how it is told; those that were measured are shown.
TOLD = {
    'multi_minus_single': 'multi-round minus single-round, the same questions',
    'single_ece_10': 'expected calibration error of the choices, single-round',
    'multi_ece_10': 'expected calibration error of the choices, multi-round',
    'multi_tokens_per_answer': 'tokens an answer, multi-round, without notes',
    'multi_note_tokens_per_answer': 'note tokens an answer, multi-round',
    'long_reasoning_tokens_per_answer': 'tokens an answer of the model without notes',
    'tokens_ratio_notes_not_counted': 'tokens against the model without notes, notes not counted',
    'tokens_ratio_notes_counted': 'tokens against the model without notes, notes counted',
}


def write_section(folder: Path, report: Report, table: Sequence[tuple[str, Share]],
                  command: str) -> None:
    """Put the measurements into `folder`/README.md. ConfigError: there is no card."""
    file = folder / 'README.md'
    if not file.is_file():
        raise ConfigError(f'{file} is not there; expected the model card that `tww train` writes')
    before, _, rest = file.read_text(encoding='utf-8').partition(BEGIN)
    after = rest.partition(END)[2]
    file.write_text(f'{before.rstrip()}\n\n{BEGIN}{_section(report, table, command)}{END}{after}',
                    encoding='utf-8')


def _section(report: Report, table: Sequence[tuple[str, Share]], command: str) -> str:
    lines = ['## Accuracy', '',
             'On worlds that it never trained on; answers are right or wrong, word for word.', '',
             f'Measured with `{command}`.', '',
             '| what | n | right | 95 % interval |', '|---|--:|--:|--:|']
    for name, part in table:
        if part.count:
            low, high = part.interval
            lines.append(f'| {name} | {part.count} | {part.value:.1%} | {low:.1%} – {high:.1%} |')
    told = [(words, report.metrics[name]) for name, words in TOLD.items()
            if name in report.metrics]
    if told:
        lines += ['', '| measure | value |', '|---|--:|']
        lines += [f'| {words} | {value:.3g} |' for words, value in told]
    return '\n'.join([*lines, ''])
