"""`tww eval tabletop` from rows to exit code."""

from __future__ import annotations

import json
import shlex

import pytest
from PIL import Image

from tww_ros.cli import build_parser, main
from tww_ros.errors import ConfigError
from tww_ros.evaluation.commands import run
from tww_ros.evaluation.measures import paired
from tww_ros.evaluation.protocol import Planned
from tww_ros.evaluation.rows import EvalOptions, make_rows
from tww_ros.evaluation.runner import Outcome
from tww_ros.world.known import TableQuestion

from .conftest import SMALL, Oracle


def fails(capsys, *arguments):
    """The one line on stderr of a command that must end with 2."""
    assert main(['eval', 'tabletop', *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith('tww: ') and err.count('\n') == 1
    return err


def test_all_right_meets_the_targets(plans, tmp_path, capsys):
    files = {'json_file': tmp_path / 'out.json', 'answers': tmp_path / 'answers.jsonl',
             'plots': tmp_path / 'plots', 'sheet': tmp_path / 'sheet.png'}
    card = tmp_path / 'README.md'
    card.write_text('# oracle\n')
    options = EvalOptions('oracle', SMALL, rows=('single', 'multi'))
    assert run(options, lambda name: Oracle(plans), card=tmp_path, **files) == 0
    data = json.loads(files['json_file'].read_text())
    assert set(data) == {'benchmark', 'metrics', 'targets', 'machine', 'versions', 'commit'}
    metrics = data['metrics']
    assert all(isinstance(value, float) for value in metrics.values())
    assert data['targets'] == {'single_present_accuracy': ['>=', 0.97],
                               'multi_minus_single': ['>=', -0.01]}

    planned = [entry for plan in plans for moment in plan.moments for entry in moment.questions]
    for row in ('single', 'multi'):
        own = [entry for entry in planned if entry.lot == row]
        assert metrics[f'{row}_accuracy'] == metrics[f'{row}_high'] == 1.0
        assert metrics[f'{row}_n'] == len(own) == metrics[f'{row}_open_n'] + metrics[
            f'{row}_choice_n']
        assert metrics[f'{row}_tokens_per_answer'] == pytest.approx(
            sum(len(entry.question.answer) for entry in own) / len(own))
        notes = sum(len(plan.segments) for plan in plans) * len('nothing new')
        assert metrics[f'{row}_note_tokens_per_answer'] == pytest.approx(notes / len(own))
    assert metrics['single_present_n'] == sum(
        entry.lot in ('single', 'present') and entry.question.family == 'present'
        for entry in planned)
    assert metrics['multi_minus_single'] == 0.0
    segments = [segment for plan in plans for segment in plan.segments]
    idle = sum(segment.note == 'nothing new' for segment in segments)
    assert metrics['notes_accuracy'] == pytest.approx(idle / len(segments))
    assert metrics['notes_events_accuracy'] == 0.0

    told = card.read_text()
    assert told.startswith('# oracle\n') and told.count('## Accuracy') == 1
    assert f'| single | {metrics["single_n"]:.0f} | 100.0% |' in told
    assert run(options, lambda name: Oracle(plans), card=tmp_path) == 0
    assert card.read_text() == told                     # in the place of the one before
    assert metrics['notes_events_n'] == len(segments) - idle

    lines = [json.loads(line) for line in files['answers'].read_text().splitlines()]
    asked = [entry.lot for entry in planned]
    assert len(lines) == len(asked) + asked.count('single')     # also in the row of its twins
    assert all(line['right'] and line['answer'] == line['truth'] for line in lines)
    for picture in (*(files['plots'] / f'{name}.png' for name in ('reliability', 'distance')),
                    files['sheet']):
        with Image.open(picture) as image:
            assert min(image.size) > 300
    out = capsys.readouterr().out
    assert 'single: present' in out and '100.0%' in out and 'put missed' in out


def test_all_wrong_misses_them(plans, tmp_path, capsys):
    options = EvalOptions('oracle', SMALL, rows=('single',))
    assert run(options, lambda name: Oracle(plans, right=False),
               json_file=tmp_path / 'out.json') == 1
    metrics = json.loads((tmp_path / 'out.json').read_text())['metrics']
    assert metrics['single_accuracy'] == metrics['single_present_accuracy'] == 0.0
    # Sure of the wrong choice each time.
    assert metrics['single_ece_10'] > 0.9
    assert 'MISSED' in capsys.readouterr().out


def test_ablations_and_other_models(plans, tmp_path):
    loaded = []

    def load(name):
        loaded.append(name)
        # It says four times as much, and no more.
        return Oracle(plans, padding=' .' * 30 if name == 'long' else '')

    options = EvalOptions('oracle', SMALL, long_model='long', stage_models={'one': 'first'})
    assert run(options, load, json_file=tmp_path / 'out.json') == 1        # notes cost too much
    assert loaded == ['oracle', 'long', 'first']
    data = json.loads((tmp_path / 'out.json').read_text())
    metrics, targets = data['metrics'], data['targets']
    rows = ('single', 'multi', 'no_notes', 'notes_only', 'recent_4', 'long_reasoning',
            'stage_one_single', 'stage_one_multi')
    assert all(metrics[f'{row}_accuracy'] == 1.0 and metrics[f'{row}_failed'] == 0
               for row in rows)
    for row in ('no_notes', 'recent_4', 'long_reasoning'):
        assert metrics[f'{row}_note_tokens_per_answer'] == 0
    assert metrics['stage_one_multi_minus_single'] == 0.0
    assert metrics['stage_one_notes_accuracy'] == metrics['notes_accuracy']
    long = metrics['long_reasoning_tokens_per_answer']
    answers, notes = metrics['multi_tokens_per_answer'], metrics['multi_note_tokens_per_answer']
    assert long - answers == pytest.approx(
        60 * metrics['multi_open_n'] / metrics['multi_n'])
    assert metrics['tokens_ratio_notes_not_counted'] == pytest.approx(answers / long)
    assert metrics['tokens_ratio_notes_counted'] == pytest.approx((answers + notes) / long)
    assert targets['tokens_ratio_notes_counted'] == ['<=', 0.44]
    assert targets['multi_minus_long_reasoning'] == ['>=', 0.0]


def test_rows_that_watch_the_same_share_it():
    options = EvalOptions('m', long_model='long', stage_models={'a': 'm', 'b': 'x'})
    rows = {row.name: row for row in make_rows(options)}
    assert rows['single'].watch == rows['multi'].watch == rows['stage_a_multi'].watch
    assert len({row.watch for row in rows.values()}) == 6
    assert EvalOptions('m').rows == ('single', 'multi', 'no-notes', 'notes-only', 'recent-4')


def test_multi_minus_single_is_paired():
    question = TableQuestion('?', 'yes', 'present', 'is_there')
    outcomes = [Outcome(stream, 0.0, Planned(lot, '', 0, question, None, pair), '', right)
                for stream, lot, pair, right in [
                    (0, 'multi', 1, True), (0, 'single', 1, True),
                    (0, 'multi', 2, False), (0, 'single', 2, True),
                    (1, 'multi', 1, False), (1, 'single', 1, False),
                    (1, 'multi', 2, False), (1, 'single', 2, True),
                    (1, 'single', 3, True)]]                    # without a round: not counted
    difference, low, high = paired(outcomes)
    assert difference == -0.5 and low == high == -0.5           # the same in both streams


def test_options_that_do_not_fit():
    with pytest.raises(ConfigError, match="unknown row 'sinlge'"):
        EvalOptions('m', rows=('sinlge',))
    with pytest.raises(ConfigError, match='--long-model DIR'):
        EvalOptions('m', rows=('long-reasoning',))


def test_errors_of_the_command_are_one_line(capsys, tmp_path):
    assert 'unknown row' in fails(capsys, '--rows', 'all')
    assert 'segments: expected' in fails(capsys, '--segments', 3)
    assert '--stage-model NAME=DIR' in fails(capsys, '--rows', 'stages')
    assert 'expected NAME=DIR' in fails(capsys, '--stage-model', 'runs/a')
    assert 'expected a directory' in fails(capsys, '--long-model', tmp_path / 'none')
    assert 'there is no folder' in fails(capsys, '--json', tmp_path / 'no' / 'x.json')
    assert "unknown setting 'speed'" in fails(capsys, '--set', 'speed=1')
    assert 'no checkpoint' in fails(capsys, '--model', '/nowhere/model')


def test_help_has_examples_that_are_valid(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['eval', 'tabletop', '--help'])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    lines = text[text.index('examples:'):].splitlines()[1:]
    assert len(lines) == 3
    for line in lines:
        assert build_parser().parse_args(shlex.split(line)[1:]).run
