"""`tww` as people use it: exit codes, words, JSON, and no traceback."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tww_ros import doctor
from tww_ros.cli import build_parser, main, parse_settings, settings_markdown, settings_yaml
from tww_ros.config import EngineConfig, NodeConfig, settings
from tww_ros.errors import ConfigError
from tww_ros.replay.bag import bag_info, write_bag_from_video

from .replay.conftest import write_video

ROOT = Path(__file__).resolve().parents[1]
FAST = ['--set', 'note.max_new_tokens=4', '--max-new-tokens', '4']


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """2.5 s at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp('clip') / 'clip.mp4')


def run(*arguments, **options):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        [str(ROOT), os.environ.get('PYTHONPATH', '')])}
    return subprocess.run([sys.executable, '-m', 'tww_ros.cli', *map(str, arguments)],
                          capture_output=True, text=True, timeout=110, env=environment,
                          check=False, **options)


def fails(capsys, *arguments):
    """The one line on stderr of a command that must end with 2."""
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith('tww: ') and err.count('\n') == 1 and 'Traceback' not in err
    return err


# Settings

def test_settings_are_parsed_by_their_type():
    assert parse_settings(['watch.sample_fps=1', 'watch.queue_frames = 1_000', 'note.enabled=off',
                           'step.attention=eager', 'step.deterministic=True']) == {
        'watch.sample_fps': 1.0, 'watch.queue_frames': 1000, 'note.enabled': False,
        'step.attention': 'eager', 'step.deterministic': True}


@pytest.mark.parametrize('text, message', [
    ('watch.sample_fps', 'expected NAME=VALUE'), ('speed=1', "unknown setting 'speed'"),
    ('watch.sample_fps=fast', 'watch.sample_fps: expected float'),
    ('watch.queue_frames=1.5', 'watch.queue_frames: expected int'),
    ('note.enabled=maybe', 'note.enabled: expected true or false')])
def test_bad_settings(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([text])


def test_settings_page_is_up_to_date():
    page = (ROOT / 'docs/settings.md').read_text(encoding='utf-8')
    assert page == settings_markdown(), 'run: tww params > docs/settings.md'


def test_settings_as_ros_parameters():
    yaml = pytest.importorskip('yaml')
    values = yaml.safe_load(settings_yaml())['/**']['ros__parameters']
    node = {name: value for name, value in values.items() if not isinstance(value, dict)}
    assert node == dataclasses.asdict(NodeConfig())
    sections = {name: value for name, value in values.items() if name not in node}
    flat = {f'{part}.{key}': value for part, entries in sections.items()
            for key, value in entries.items()}
    assert flat == EngineConfig().to_flat()
    assert {name: type(value) for name, value in flat.items()} == {
        entry.name: entry.type for entry in settings(EngineConfig)}


def test_params_prints_the_page(capsys):
    assert main(['params']) == 0
    assert capsys.readouterr().out == settings_markdown()
    assert main(['params', '--format', 'yaml']) == 0
    assert capsys.readouterr().out == settings_yaml()


# Help, versions, wrong use

def test_help_of_every_command_has_examples(capsys):
    for command in (['ask'], ['bag', 'from-video'], ['bag', 'info'], ['replay'], ['doctor'],
                    ['params'], ['bench']):
        with pytest.raises(SystemExit) as ended:
            main([*command, '--help'])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        examples = text[text.index('examples:'):]
        assert f'tww {" ".join(command)}' in examples


def test_examples_in_help_are_valid(capsys):
    import shlex
    count = 0
    for command in (['ask'], ['bag', 'from-video'], ['bag', 'info'], ['replay'], ['params'],
                    ['bench']):
        with pytest.raises(SystemExit):
            main([*command, '--help'])
        text = capsys.readouterr().out
        for line in text[text.index('examples:'):].splitlines()[1:]:
            words = shlex.split(line.partition('>')[0])
            assert words.pop(0) == 'tww'
            build_parser().parse_args(words)
            count += 1
    assert count >= 10


def test_without_a_command_help_is_printed(capsys):
    assert main([]) == 2
    assert 'COMMAND' in capsys.readouterr().out


def test_version(capsys):
    from tww_ros import __version__
    with pytest.raises(SystemExit) as ended:
        main(['--version'])
    assert ended.value.code == 0 and __version__ in capsys.readouterr().out


# tww bag

@pytest.mark.parametrize('options, topic', [
    ([], '/image'), (['--storage', 'sqlite3', '--topic', '/front/image'], '/front/image'),
    (['--compressed', 'jpeg', '--fps', '5', '--max-seconds', '1'], '/image/compressed')])
def test_bag_from_video_and_info(clip, tmp_path, capsys, options, topic):
    bag = tmp_path / 'my bag'
    assert main(['bag', 'from-video', str(clip), str(bag), *options]) == 0
    out = capsys.readouterr().out
    frames = 5 if '--fps' in options else 25
    assert f'{frames} images on {topic}' in out and str(bag) in out
    assert bag_info(bag).messages == frames
    assert main(['bag', 'info', str(bag)]) == 0
    assert f'{topic}   sensor_msgs/msg/' in capsys.readouterr().out
    assert main(['bag', 'info', str(bag), '--json']) == 0
    data = json.loads(capsys.readouterr().out)
    assert data['messages'] == frames and data['topics'][0]['name'] == topic


def test_bag_errors_are_one_line(clip, tmp_path, capsys):
    assert 'no such video file' in fails(capsys, 'bag', 'from-video', 'no.mp4', tmp_path / 'b')
    assert 'exists already' in fails(capsys, 'bag', 'from-video', clip, tmp_path)
    assert 'no such bag' in fails(capsys, 'bag', 'info', tmp_path / 'none')
    (tmp_path / 'b').mkdir()
    assert 'metadata.yaml' in fails(capsys, 'bag', 'info', tmp_path / 'b')


# tww replay

def test_replay_without_ros_says_what_to_do(clip, tmp_path, capsys, monkeypatch):
    write_bag_from_video(clip, tmp_path / 'bag', progress=False)
    monkeypatch.setitem(sys.modules, 'tww_ros.node.bag_publisher', None)
    assert 'source your ROS 2' in fails(capsys, 'replay', tmp_path / 'bag')


def test_replay_refuses_wrong_input_before_ros_is_needed(clip, tmp_path, capsys):
    write_bag_from_video(clip, tmp_path / 'bag', progress=False)
    assert 'no such bag' in fails(capsys, 'replay', tmp_path / 'none')
    assert '/old:=/new' in fails(capsys, 'replay', tmp_path / 'bag', '--topic-map', 'image:=cam')
    assert 'got /cam' in fails(capsys, 'replay', tmp_path / 'bag', '--topic', '/cam')


def test_replay_passes_its_options_on(clip, tmp_path, capsys, monkeypatch):
    from types import ModuleType, SimpleNamespace
    write_bag_from_video(clip, tmp_path / 'bag', progress=False)
    calls = []
    publisher = ModuleType('tww_ros.node.bag_publisher')

    def publish_bag(messages, **options):
        calls.append({**options, 'count': len(list(messages))})
        return SimpleNamespace(messages=25, images=25, loops=1, seconds=2.4, topics=('/image',),
                               skipped_topics=('/odd',), lost=2)

    publisher.publish_bag = publish_bag
    monkeypatch.setitem(sys.modules, 'tww_ros.node.bag_publisher', publisher)
    bag = str(tmp_path / 'bag')
    assert main(['replay', bag, '--rate', '2', '--loop', '--no-clock', '--wait', '3',
                 '--topic-map', '/image:=/cam', '--node', '/eye']) == 0
    assert main(['replay', bag, '--as-fast-as-possible']) == 0
    common = {'count': 25, 'progress': True}
    assert calls == [
        {'rate': 2.0, 'loop': True, 'clock': False, 'remap': {'/image': '/cam'},
         'flow_node': '/eye', 'wait_for_subscribers_s': 3.0, **common},
        {'rate': 0.0, 'loop': False, 'clock': True, 'remap': {}, 'flow_node': '/tww',
         'wait_for_subscribers_s': 10.0, **common}]
    out, err = capsys.readouterr()
    assert '25 images' in out and '/odd' in out and '2 images were lost' in err


# tww ask

def test_ask_twice_gives_the_same_bytes_and_true_times(clip, capsys):
    arguments = ['ask', '--json', *FAST, '--video', str(clip), '--at', '1.0', '--at', '2.0',
                 'what is red?']
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)
    for data in (first, second):
        for answer in data['answers']:
            assert set(answer.pop('seconds')) == {'queue_s', 'first_token_s', 'total_s'}
    assert first == second

    # Two frames per second are watched: 0.0 0.5 1.0 | 1.5 2.0 (asked at 1.0 and at 2.0).
    assert [(a['at_s'], a['as_of_ns']) for a in first['answers']] == [
        (1.0, 1_000_000_000), (2.0, 2_000_000_000)]
    spans = [(s['start_ns'] // 10**6, s['end_ns'] // 10**6, s['frames'])
             for s in first['segments']]
    assert spans == [(0, 1_000, 3), (1_500, 2_000, 2)]
    assert first['frames'] == {'received': 21, 'watched': 5, 'dropped': 0}
    assert [len(a['evidence']) for a in first['answers']] == [1, 2]
    assert len(first['notes']) == 2 and 'mean nothing' in first['warning']
    assert all(a['completion_tokens'] <= 4 for a in first['answers'])


def test_ask_with_choices_session_and_sheet(clip, tmp_path, capsys):
    from PIL import Image
    sheet = tmp_path / 'seen.png'
    assert main(['ask', '--json', *FAST, '--video', str(clip), '--choices',
                 'red, blue,none of these', '--session', 's1', '--sheet', str(sheet), '--set',
                 'watch.sample_fps=5', '--set', 'watch.segment_s=1', 'which colour?']) == 0
    data = json.loads(capsys.readouterr().out)
    answer = data['answers'][0]
    assert answer['choices'] == ['red', 'blue', 'none of these']
    assert answer['text'] in answer['choices'] and answer['finish_reason'] == 'choice'
    assert sum(answer['choice_probabilities']) == pytest.approx(1.0)
    # At the end of the video: 25 frames at 10 per second, thinned to 5.
    assert (answer['at_s'], data['frames']['received'], data['frames']['watched']) == (2.4, 25, 13)
    assert [s['frames'] for s in data['segments']] == [5, 5, 3]
    with Image.open(sheet) as picture:
        assert picture.width > 1_000 and picture.height > 300


def test_ask_prints_for_people(clip, capsys):
    assert main(['ask', '--video', str(clip), '--at', '1.2', *FAST, 'what is [b]red[/b]?']) == 0
    out = ' '.join(capsys.readouterr().out.split())
    assert 'its words mean nothing' in out and 'at 1.2 s what is [b]red[/b]?' in out
    assert 'knew the video to 1.00 s: 3 of 13 frames watched' in out
    assert 'note 0.0–1.0' in out and 'attention' in out


@pytest.mark.parametrize('arguments, message', [
    (['--at', '9', 'what?'], 'within the video (0 to 2.5 s), got 9 s'),
    (['--at', '-1', 'what?'], '0 s or later'),
    ([' '], 'the question is empty'),
    (['--at', '1', '--at', '2', 'a?', 'b?', 'c?'], '2 times and 3 questions'),
    (['--choices', 'one', 'what?'], 'at least two'),
    (['--choices', 'yes,', 'what?'], 'a choice is empty'),
    (['--set', 'watch.sample_fps=0', 'what?'], 'watch.sample_fps: expected 0.05 to 60'),
    (['--max-new-tokens', '0', 'what?'], 'max_new_tokens'),
    (['--model', '/nowhere/model', 'what?'], 'no checkpoint'),
    (['--sheet', '/nowhere/seen.png', 'what?'], 'there is no folder'),
])
def test_ask_errors_are_one_line(clip, capsys, arguments, message):
    assert message in fails(capsys, 'ask', '--video', clip, *arguments)


def test_ask_about_no_video(tmp_path, capsys):
    assert 'no such video' in fails(capsys, 'ask', '--video', tmp_path / 'x.mp4', 'what?')
    (tmp_path / 'x.mp4').write_text('words')
    assert 'cannot be opened' in fails(capsys, 'ask', '--video', tmp_path / 'x.mp4', 'what?')


def test_debug_shows_where_an_error_comes_from(tmp_path):
    from tww_ros.errors import ReplayError
    with pytest.raises(ReplayError):
        main(['ask', '--debug', '--video', str(tmp_path / 'x.mp4'), 'what?'])


def test_interrupt_is_quiet(clip):
    """Ctrl-C while it watches and writes notes: exit code 130, no traceback, at once."""
    process = subprocess.Popen(
        [sys.executable, '-u', '-m', 'tww_ros.cli', 'ask', '--video', str(clip), '--set',
         'note.max_new_tokens=1000', '--set', 'watch.sample_fps=60', '--set',
         'watch.segment_s=0.1', '--max-new-tokens', '256', 'what?', 'and now?'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for line in process.stdout:
            if line.startswith('video'):
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 130
    assert 'Traceback' not in err


def test_reader_that_goes_away_is_no_error():
    process = subprocess.Popen([sys.executable, '-m', 'tww_ros.cli', 'params'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 1
    assert err == ''


# tww doctor

def test_doctor_really_checks(ros_env):
    done = run('doctor', '--json')
    checks = {check['name']: check for check in json.loads(done.stdout)}
    assert set(checks) >= {'python', 'memory', 'disk', 'torch', 'transformers', 'video', 'bags',
                           '4-bit kernels', 'ROS variables', 'rclpy'}
    failed = [name for name, check in checks.items() if check['status'] == 'fail']
    assert done.returncode == (1 if failed else 0)
    # What the tests themselves need is there; ROS may be missing or not built.
    for name in ('torch', 'transformers', 'video', 'bags', 'disk'):
        assert checks[name]['status'] == 'ok', checks[name]
    assert all(check['fix'] for check in checks.values() if check['status'] != 'ok')
    assert f'ROS_DOMAIN_ID={ros_env["ROS_DOMAIN_ID"]}' in checks['ROS variables']['detail']


def test_doctor_fails_on_a_broken_part(monkeypatch, capsys):
    answers = {'four_bit': {'error': 'RuntimeError: no kernel image', 'missing': False},
               'rclpy': {'error': 'No module named rclpy', 'missing': True}}
    monkeypatch.setattr(doctor, '_probe', lambda name: answers.get(name, {'detail': 'fine'}))
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert 'fail  4-bit kernels  RuntimeError: no kernel image' in out
    assert 'quantization none' in out and out.endswith('broken: 4-bit kernels\n')
    assert 'warn  rclpy' in out

    del answers['four_bit']
    assert main(['doctor']) == 0
    assert 'all that is needed works' in capsys.readouterr().out
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    assert main(['doctor']) == 1
    assert 'ROS jazzy is sourced, but' in capsys.readouterr().out


@pytest.mark.parametrize('code, expected', [
    ('import os; os.kill(os.getpid(), 11)', 'killed by signal 11'),
    ('raise ValueError("no numpy 2")', 'ValueError: no numpy 2'),
    ('import sys; sys.exit("gone")', 'gone'),
    ('import time; time.sleep(60)', 'no result within 3 s'),
])
def test_doctor_survives_what_its_probes_do(monkeypatch, tmp_path, code, expected):
    package = tmp_path / 'tww_ros'
    package.mkdir()
    source = Path(doctor.__file__).read_text(encoding='utf-8')
    head = 'def _probe_torch() -> str:\n'
    assert head in source
    source = source.replace(head, f'{head}    {code}\n')
    (package / '__init__.py').write_text('')
    (package / 'doctor.py').write_text(source, encoding='utf-8')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, '_PROBE_TIMEOUT_S', 3)
    assert expected in doctor._probe('torch')['error']


def test_doctor_refuses_a_domain_that_linux_gives_away(monkeypatch):
    monkeypatch.setattr(doctor, '_probe', lambda name: {'detail': 'fine'})
    verdicts = {}
    for domain in ('0', '101', '102', '232', '233', 'seven'):
        monkeypatch.setenv('ROS_DOMAIN_ID', domain)
        verdicts[domain] = next(c.status for c in doctor.all_checks() if c.name == 'ROS variables')
    assert verdicts == {'0': 'ok', '101': 'ok', '102': 'fail', '232': 'ok', '233': 'fail',
                        'seven': 'fail'}


# tww bench

def test_bench_runs_a_file_of_the_repository(tmp_path, capsys, monkeypatch):
    (tmp_path / 'benchmarks').mkdir()
    (tmp_path / 'benchmarks/cli_probe_bench.py').write_text(
        'from __future__ import annotations\n'
        'from dataclasses import dataclass\n'
        'from cli_probe_helper import NUMBER\n'
        '@dataclass\nclass Plan:\n    number: int\n'
        'def main(argv):\n    print(Plan(NUMBER).number, argv)\n    return 1\n')
    (tmp_path / 'benchmarks/cli_probe_helper.py').write_text('NUMBER = 42\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert main(['bench', 'cli-probe-bench', '--quick', '--json', 'x.json']) == 1
    assert "42 ['--quick', '--json', 'x.json']" in capsys.readouterr().out
    assert 'known: ' in fails(capsys, 'bench', 'nonsense')
