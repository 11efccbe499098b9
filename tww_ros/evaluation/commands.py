"""`tww eval tabletop`: a model on worlds that it never trained on, as a table, JSON and pictures.

In: the options. Out: a table on stdout, JSON in the form of the benchmarks, pictures; exit code 1
when a target is missed. What is measured: `protocol`, `rows`, `measures`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tww_ros.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from tww_ros.evaluation.rows import EvalOptions, Evaluation
    from tww_ros.evaluation.scoring import Share
    from tww_ros.model.protocol import StepModel

# Questions of a lot for each stream, about: fewer streams are quicker and more alike.
QUESTIONS_PER_STREAM = 25
LEAST_STREAMS = 20


def register(commands: Any, add: Any, parse_settings: Callable[[Sequence[str]], dict]) -> None:
    """Declare `tww eval`; `add` and `parse_settings` are the CLI's helpers."""
    group = commands.add_parser('eval', help='measure a model')
    kinds = group.add_subparsers(title='commands', metavar='COMMAND', required=True)
    parser = add(kinds, 'tabletop', _tabletop, 'measure a model on tabletop worlds that it never '
                 'trained on; exit 1 when a target is missed', """
        tww eval tabletop --json eval.json
        tww eval tabletop --model runs/embedded/stages/long --rows single multi --plots plots
        tww eval tabletop --questions 100 --streams 4 --rows single --sheet eval.png""")
    parser.set_defaults(parse_settings=parse_settings)
    parser.add_argument('--model', default='embedded', help='as for tww ask (default: embedded)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, …')
    parser.add_argument('--dtype', default='auto',
                        choices=('auto', 'float32', 'bfloat16', 'float16'))
    parser.add_argument('--quantization', default='none', choices=('none', 'int8', 'nf4'))
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                        help='an engine setting for all rows (see `tww params`); again for more')
    parser.add_argument('--rows', nargs='+', default=[], metavar='ROW',
                        help='of single, multi, no-notes, notes-only, recent-4, long-reasoning, '
                             'stages (default: all that can be run)')
    parser.add_argument('--long-model', default='', metavar='DIR',
                        help='a checkpoint trained without notes, for the row long-reasoning')
    parser.add_argument('--stage-model', action='append', default=[], metavar='NAME=DIR',
                        help='a checkpoint for the rows of stages; again for more')
    parser.add_argument('--mode', default='settled',
                        choices=('settled', 'deterministic', 'live'),
                        help='settled: notes are written before questions are asked (the '
                             'default); deterministic: also bit for bit the same, slower; '
                             'live: the newest note may be missing')
    parser.add_argument('--seed', type=int, default=0, help='other worlds, other questions')
    parser.add_argument('--questions', type=int, default=1_000, metavar='N',
                        help='of each lot (default: %(default)s)')
    parser.add_argument('--streams', type=int, metavar='N',
                        help=f'(default: one for {QUESTIONS_PER_STREAM} questions, '
                             f'{LEAST_STREAMS} at least)')
    parser.add_argument('--segments', type=int, default=130, metavar='N',
                        help='length of a stream (default: %(default)s)')
    parser.add_argument('--moments', type=int, default=6, metavar='N',
                        help='of each stream at which questions are asked (default: %(default)s)')
    parser.add_argument('--size', type=int, default=192, metavar='PX',
                        help='of the frames (default: %(default)s)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='all numbers')
    parser.add_argument('--card', type=Path, metavar='DIR',
                        help='a checkpoint whose README.md shall tell the accuracy')
    parser.add_argument('--answers', type=Path, metavar='FILE',
                        help='every question with its answer, one JSON object a line')
    parser.add_argument('--plots', type=Path, metavar='DIR', help='reliability.png, distance.png')
    parser.add_argument('--sheet', type=Path, metavar='PNG', help='some questions in pictures')


def _tabletop(arguments: argparse.Namespace) -> int:
    from tww_ros.evaluation.protocol import Protocol
    from tww_ros.evaluation.rows import EvalOptions
    from tww_ros.model.loading import load_model

    streams = arguments.streams
    if streams is None:
        streams = max(LEAST_STREAMS, -(-arguments.questions // QUESTIONS_PER_STREAM))
    options = EvalOptions(
        model=arguments.model,
        protocol=Protocol(seed=arguments.seed, questions=arguments.questions, streams=streams,
                          segments=arguments.segments, moments=arguments.moments,
                          size_px=arguments.size),
        rows=tuple(arguments.rows), mode=arguments.mode,
        settings=arguments.parse_settings(arguments.set), long_model=arguments.long_model,
        stage_models=_stage_models(arguments.stage_model))
    # Now rather than after the rows that come first.
    for name in filter(None, (options.long_model, *options.stage_models.values())):
        if not Path(name).expanduser().is_dir():
            raise ModelError(f'no checkpoint at {name!r}: expected a directory')
    for file in filter(None, (arguments.json, arguments.answers, arguments.sheet)):
        if not file.resolve().parent.is_dir():
            raise ConfigError(f'{file}: there is no folder {file.parent}; make it first')

    if arguments.card is not None and not (arguments.card / 'README.md').is_file():
        raise ConfigError(f'--card: there is no {arguments.card / "README.md"}; expected the '
                          'folder of a checkpoint that `tww train` made')

    def load(name: str) -> StepModel:
        return load_model(name, quantization=arguments.quantization, device=arguments.device,
                          dtype=arguments.dtype)

    return run(options, load, json_file=arguments.json, answers=arguments.answers,
               plots=arguments.plots, sheet=arguments.sheet, card=arguments.card)


def _stage_models(texts: Sequence[str]) -> dict[str, str]:
    models = {}
    for text in texts:
        name, sign, folder = text.partition('=')
        if not (name.replace('-', '').replace('_', '').replace('+', '').isalnum() and sign
                and folder):
            raise ConfigError(f'--stage-model: expected NAME=DIR such as multi=runs/a/stages/'
                              f'multi, got {text!r}')
        models[name] = folder
    return models


def run(options: EvalOptions, load: Callable[[str], StepModel], *, json_file: Path | None = None,
        answers: Path | None = None, plots: Path | None = None,
        sheet: Path | None = None, card: Path | None = None) -> int:
    """Measure, print, write; 1 when a target is missed, else 0. `load` makes a model of a name."""
    from tww_ros.evaluation.card import write_section
    from tww_ros.evaluation.measures import TARGETS, measure
    from tww_ros.evaluation.plots import draw_plots
    from tww_ros.evaluation.report import Report
    from tww_ros.evaluation.rows import evaluate
    from tww_ros.evaluation.sheet import draw_sheet

    evaluation = evaluate(options, load)
    report = Report('tabletop')
    report.add('seed', options.protocol.seed)
    report.add('streams', options.protocol.streams)
    table = measure(evaluation, report)
    _print_table(table)
    _print_errors(evaluation)
    if answers is not None:
        _write_answers(evaluation, answers)
    if plots is not None:
        draw_plots(evaluation, plots)
    if sheet is not None:
        row = evaluation.rows[0]
        draw_sheet(evaluation.outcomes(row, row.lot), evaluation.plans[row.watch]).save(sheet)
    if card is not None:
        write_section(card, report, table, _command(options))
    endings = ('tokens_per_answer', 'ece_10', 'ece_15', '_minus_single', '_single_low',
               '_single_high', '_failed')
    return report.finish(json_file, {name for name in report.metrics
                                     if name in TARGETS or name.endswith(endings)})


def _command(options: EvalOptions) -> str:
    asked = options.protocol
    rows = ' '.join(options.rows)
    return (f'tww eval tabletop --seed {asked.seed} --questions {asked.questions} --streams '
            f'{asked.streams} --segments {asked.segments} --rows {rows}')


def _print_table(table: list[tuple[str, Share]]) -> None:
    from rich.console import Console
    from rich.table import Table
    shown = Table(title='tabletop')
    for name in ('row', 'n', 'accuracy', '95 % interval'):
        shown.add_column(name, justify='left' if name == 'row' else 'right')
    for name, part in table:
        low, high = part.interval
        if part.count:
            shown.add_row(name, str(part.count), f'{part.value:.1%}', f'{low:.1%} – {high:.1%}')
    Console(soft_wrap=True).print(shown)


def _print_errors(evaluation: Evaluation) -> None:
    """What to look at first when numbers are low; of the first row."""
    from tww_ros.evaluation.measures import answer_errors, note_errors
    row = evaluation.rows[0]
    errors = note_errors(evaluation.streams[row.watch])
    if errors:
        print(f'commonest errors in notes ({row.name}):')
    for error, count, note in errors:
        print(f'  {count:5d}  {error}: {note.perfect!r} → {note.written!r}')
    wrong = answer_errors(evaluation.outcomes(row))
    if wrong:
        print(f'kinds with most wrong answers ({row.name}):')
    for kind, part, outcome in wrong:
        made = outcome.planned.question
        print(f'  {part.count - part.right:5d} of {part.count:<5d} {kind}: {made.text} '
              f'{made.answer!r} → {(outcome.text or outcome.failed)!r}')


def _write_answers(evaluation: Evaluation, file: Path) -> None:
    with open(file, 'w', encoding='utf-8') as lines:
        for row in evaluation.rows:
            for outcome in evaluation.outcomes(row):
                planned = outcome.planned
                made = planned.question
                lines.write(json.dumps({
                    'row': row.name, 'seed': evaluation.plans[row.watch][outcome.stream]
                    .episode.seed, 'at_s': round(outcome.at_s, 3), 'lot': planned.lot,
                    'session': planned.session, 'round': planned.number, 'kind': made.kind,
                    'family': made.family, 'distance': planned.distance, 'question': made.text,
                    'choices': made.choices, 'truth': made.answer, 'answer': outcome.text,
                    'right': outcome.right, 'reasoning': outcome.reasoning,
                    'true_reasoning': made.reasoning, 'probabilities': outcome.probabilities,
                    'tokens': outcome.tokens, 'finish_reason': outcome.finish_reason,
                    'failed': outcome.failed}) + '\n')
