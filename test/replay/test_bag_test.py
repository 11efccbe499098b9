"""Bags replayed in this process: what is seen when, what is checked, what is written."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from tww_ros.cli import main
from tww_ros.errors import ConfigError, ReplayError
from tww_ros.model.scripted import ScriptedModel
from tww_ros.replay.bag import DEFAULT_START_NS, write_bag_from_video
from tww_ros.replay.bag_frames import BagFrames, camera_name
from tww_ros.replay.bag_memory import BagMemory
from tww_ros.replay.bag_questions import BagQuestion, Expected, ExpectedEvidence, read_questions
from tww_ros.replay.bag_test import Asked, BagReport, Check, Piece, check, run_bag_test
from tww_ros.types import Answer, Question

pytest.importorskip('rosbags')
ROOT = Path(__file__).resolve().parents[2]
EVERY_FRAME = {'watch.sample_fps': 10.0, 'watch.segment_s': 1.0}
MS = 1_000_000


@pytest.fixture(scope='module')
def bag(video, tmp_path_factory):
    """25 images on /image, received at 0.0, 0.1, … 2.4 s."""
    path = tmp_path_factory.mktemp('bags') / 'small'
    write_bag_from_video(video, path, progress=False)
    return path


def write_images(path, images):
    """images: (received ns, topic, header stamp ns, encoding); 64×48 px of grey."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    store = get_typestore(Stores.ROS2_KILTED)
    kind, types = 'sensor_msgs/msg/Image', store.types
    with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=store)
                       for topic in dict.fromkeys(topic for _, topic, _, _ in images)}
        for t_ns, topic, stamp_ns, encoding in images:
            stamp = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
            header = types['std_msgs/msg/Header'](stamp=stamp, frame_id='')
            data = np.full(48 * 64 * 3, 90, np.uint8)
            writer.write(connections[topic], t_ns, store.serialize_cdr(
                types[kind](header, 48, 64, encoding, 0, 192, data), kind))
    return path


# What is seen when

def test_questions_see_what_was_received_by_then(bag):
    with BagMemory(bag, ScriptedModel(), EVERY_FRAME) as memory:
        assert list(memory.frames.cameras.items()) == [('camera', '/image')]
        for at_s, newest_ms in ((0.0, 0), (0.25, 200), (1.0, 1_000), (1.0, 1_000), (2.4, 2_400)):
            answer = memory.ask('what?', at_s)
            assert answer.as_of_ns == DEFAULT_START_NS + newest_ms * MS
            assert memory.received_s(answer.as_of_ns) == newest_ms / 1_000
        with pytest.raises(ReplayError, match='order of their times, got one at 1 s after one at'):
            memory.ask('what?', 1.0)
        assert memory.engine.stats().frames_dropped == 0


@pytest.mark.parametrize('moment, words', [
    ({'at_s': 2.5}, r'within the bag \(0 to 2.4 s\), got 2.5 s'),
    ({'at_s': float('nan')}, 'within the bag'), ({'at_s': -0.1}, 'within the bag'),
    ({'at_ns': 5}, 'within the bag'), ({'at_s': 1.0, 'at_ns': 5}, 'got both')])
def test_times_outside_the_bag(bag, moment, words):
    with BagMemory(bag, ScriptedModel()) as memory, pytest.raises(ReplayError, match=words):
        memory.ask('what?', **moment)


def test_absolute_time_and_the_end(bag):
    with BagMemory(bag, ScriptedModel(), EVERY_FRAME) as memory:
        answer = memory.ask('what?', at_ns=DEFAULT_START_NS + 500 * MS)
        assert memory.received_s(answer.as_of_ns) == 0.5
        answer = memory.ask('what?')
        assert memory.received_s(answer.as_of_ns) == 2.4
        spans = [memory.span_s(piece) for piece in answer.evidence]
        # Segments of 1 s from 0.0, cut by the question at 0.5.
        assert sorted(spans) == [(0.0, 0.5), (0.6, 1.5), (1.6, 2.4)]


def test_stamps_of_another_clock_are_told_in_seconds_of_the_bag(tmp_path):
    """A simulation recorded without sim time: headers from 3 s on, received in 2026."""
    start_ns = 1_790_000_000 * 10**9
    images = [(start_ns + n * 100 * MS, ('/left/image', '/right/image')[n % 2],
               3 * 10**9 + n * 100 * MS, 'rgb8') for n in range(20)]
    path = write_images(tmp_path / 'sim', images)
    with BagMemory(path, ScriptedModel(), EVERY_FRAME) as memory:
        answer = memory.ask('what?', at_s=1.0, cameras=('left',))
        assert answer.as_of_ns == 3 * 10**9 + 1_000 * MS
        assert memory.received_s(answer.as_of_ns) == 1.0
        assert {piece.camera for piece in answer.evidence} == {'left'}
        assert [memory.span_s(piece) for piece in answer.evidence] == [(0.0, 0.8), (1.0, 1.0)]


def test_cameras_are_chosen_and_named(tmp_path):
    assert [camera_name(topic) for topic in (
        '/image', '/front/image', '/r1/front/image_raw/compressed', '/image/compressed')] == [
        'camera', 'front', 'r1/front', 'camera']
    images = [(1 + n, topic, n + 1, encoding) for n in range(3) for topic, encoding in (
        ('/front/image', 'rgb8'), ('/front/other', 'rgb8'), ('/depth/image', '16UC1'))]
    path = write_images(tmp_path / 'many', images)
    frames = BagFrames(path, {'a': '/front/image'})
    assert [(t_ns, frame.camera, frame.stamp_ns) for t_ns, frame in frames] == [
        (1, 'a', 1), (2, 'a', 2), (3, 'a', 3)]
    for cameras, words in (
            (None, "would both be camera 'front'"),
            ({'a': '/b'}, "expected an image topic .*'/b'"),
            ({'a': '/front/image', 'b': '/front/image'}, 'another topic for each camera'),
            ({'a': '/depth/image'}, "first picture of camera 'a' .* depth images")):
        with pytest.raises(ReplayError, match=words):
            list(BagFrames(path, cameras))


def test_unreadable_pictures_are_counted_and_unstamped_ones_get_their_time(tmp_path):
    path = write_images(tmp_path / 'odd', [(5, '/image', 0, 'rgb8'), (6, '/image', 6, 'nonsense'),
                                           (7, '/image', 7, 'rgb8')])
    frames = BagFrames(path)
    assert [frame.stamp_ns for _, frame in frames] == [5, 7]
    assert frames.unreadable == 1


def test_a_memory_on_disk_would_change_the_answers(bag, tmp_path):
    with pytest.raises(ConfigError, match=r'memory\.folder'):
        BagMemory(bag, ScriptedModel(), {'memory.folder': str(tmp_path)})


# What is checked

def piece(from_s, to_s, score, camera='front'):
    return Piece(1, camera, from_s, to_s, score, '')


@pytest.mark.parametrize('expected, text, passed', [
    (Expected(exact='A cup.'), 'A cup.', True), (Expected(exact='A cup.'), 'a cup.', False),
    (Expected(contains=('CUP', 'red')), 'a red cup', True),
    (Expected(contains=('cup', 'blue')), 'a red cup', False),
    (Expected(regex=r'^\w+ red'), 'a red cup', True), (Expected(regex='^red'), 'a red', False),
])
def test_texts(expected, text, passed):
    asked = BagQuestion('q1', 1, Question('what?'), expected)
    checks = check(asked, Answer(text, '', 'stop', 0, ()), ())
    assert all(part.passed for part in checks) is passed
    assert len(checks) == max(1, len(expected.contains))


@pytest.mark.parametrize('choice, probability, verdicts', [
    ('yes', 0.7, [True, True]), ('yes', 0.71, [True, False]), ('no', 0.3, [False, True])])
def test_choices(choice, probability, verdicts):
    asked = BagQuestion('q1', 1, Question('open?', choices=('no', 'yes')),
                        Expected(choice=choice, probability=probability))
    answer = Answer('yes', '', 'choice', 0, (), choice_probabilities=(0.3, 0.7))
    assert [part.passed for part in check(asked, answer, ())] == verdicts


@pytest.mark.parametrize('expected, passed', [
    (ExpectedEvidence(4.0, 5.0), True), (ExpectedEvidence(2.0, 4.0), True),
    (ExpectedEvidence(0.0, 3.9), False), (ExpectedEvidence(4.0, 5.0, 'rear'), False),
    (ExpectedEvidence(0.0, 3.9, share=0.4), True), (ExpectedEvidence(0.0, 3.9, share=0.41), False),
    (ExpectedEvidence(0.0, 9.0, 'rear', 0.1), True),
    (ExpectedEvidence(0.0, 9.0, 'front', 0.95), False)])
def test_evidence(expected, passed):
    asked = BagQuestion('q1', 1, Question('what?'), Expected(evidence=expected))
    pieces = (piece(0.0, 3.5, 0.3), piece(3.0, 3.5, 0.1, 'rear'), piece(4.0, 7.5, 0.6))
    assert [part.passed for part in check(asked, Answer('', '', 'stop', 0, ()), pieces)] == [
        passed]


# What is written

def test_xml_holds_whatever_a_model_writes():
    words = 'a\x00b<&"\ud800\ufffe ü'
    report = BagReport('bag', 1.0, {}, 'door', (
        Asked('q1', 0.5, words, words, '', 'stop', 0.5, {}, (), (Check('exact', False, 'x', words),
                                                                 Check('regex', True, '', ''))),
        Asked('q2', 0.5, 'what?', 'x', '', 'stop', 0.5, {}, (), ())), (), {})
    suite = ElementTree.fromstring(report.to_junit().encode()).find('testsuite')
    assert (suite.get('tests'), suite.get('failures')) == ('2', '1')
    first, second = suite.findall('testcase')
    assert (first.get('classname'), first.get('name')) == ('door', 'q1')
    assert first.find('failure').get('type') == 'exact'
    assert 'a\ufffdb<&"\ufffd\ufffd ü' in first.find('failure').text
    assert second.find('failure') is None


def test_answers_are_asked_in_order_of_time_and_checked(bag, tmp_path):
    file = tmp_path / 'door.yaml'
    file.write_text("""
        settings: {watch.sample_fps: 10.0}
        questions:
          - {name: late, ask: 'how many?', expect: {exact: '2'}}
          - {name: early, ask: 'is it open?', at: 0.5, choices: ['yes', 'no'],
             expect: {choice: 'no', probability: 0.9, evidence: {from: 0, to: 0.4}}}
        """)
    model = ScriptedModel(answer=lambda prompt: '3' if 'many' in prompt else 'no')
    report = run_bag_test(bag, read_questions(file), model)
    early, late = report.asked
    assert (early.name, early.passed, early.answer, early.as_of_s) == ('early', True, 'no', 0.5)
    assert early.probabilities['no'] > 0.9 and early.at_s == 0.5
    assert (late.name, late.passed, late.answer, late.as_of_s) == ('late', False, '3', 2.4)
    assert late.checks == (Check('exact', False, "'2'", "'3'"),)
    assert report.failed == 1 and report.frames['dropped'] == 0
    assert report.frames['received'] == 25
    data = json.loads(report.to_json())
    assert (data['passed'], data['failed'], data['bag']) == (1, 1, 'small')
    assert [asked['passed'] for asked in data['asked']] == [True, False]


def test_same_bag_twice_gives_the_same_bytes(bag, tmp_path):
    """Two processes, the bag and the files in two places."""
    questions = ("model: tiny-random\nsettings: {note.max_new_tokens: 4}\nquestions:\n"
                 "- {ask: 'what is there?', at: 1.0, max_new_tokens: 6, expect: {exact: a cup}}\n"
                 "- {ask: 'is it red?', choices: ['yes', 'no'], expect: {regex: 'yes|no'}}\n")
    reports = []
    for name in ('here', 'there'):
        folder = tmp_path / name
        shutil.copytree(bag, folder / 'small')
        (folder / 'door.yaml').write_text(questions)
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        result = subprocess.run(
            [sys.executable, '-m', 'tww_ros.cli', 'test', 'small', str(folder / 'door.yaml'),
             '--junit', 'out.xml', '--json', 'out.json', '--device', 'cpu'], cwd=folder,
            env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True, timeout=110,
            check=False)
        assert result.returncode == 1, result.stderr
        assert 'FAILED' in result.stdout and '1 of 2 passed' in result.stdout
        reports.append([result.stdout, *((folder / f'out.{kind}').read_bytes()
                                         for kind in ('xml', 'json'))])
    assert reports[0] == reports[1]
    cases = ElementTree.fromstring(reports[0][1]).findall('testsuite/testcase')
    assert [case.find('failure') is None for case in cases] == [False, True]
    assert json.loads(reports[0][2])['model']['name'] == 'tiny-random'


@pytest.mark.parametrize('change, arguments, words', [
    ('', [], 'expected a model, there or as --model'),
    ('model: embedded', ['--set', 'watch.fps=1'], 'unknown setting'),
    ('model: embedded', ['--junit', '/no/such/folder/a.xml'], 'there is no folder'),
    ('modell: a', [], r'door.yaml:1: modell: expected one of the keys'),
    ('cameras: {a: /b}', [], 'expected an image topic of this bag'),
])
def test_command_refuses_what_it_cannot_do(bag, tmp_path, capsys, change, arguments, words):
    file = tmp_path / 'door.yaml'
    file.write_text(f'{change}\nquestions: [{{ask: what, expect: {{exact: a}}}}]\n')
    assert main(['test', str(bag), str(file), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('tww: ') and error.count('\n') == 1
    assert re.search(words, error), error


def test_question_that_cannot_be_asked_names_its_line(tmp_path):
    images = [(n * 10**9, '/image', n * 10**9, 'rgb8') for n in range(1, 4)]
    path = write_images(tmp_path / 'bag', images)
    file = tmp_path / 'q.yaml'
    for place, words in (('at: 99', 'within the bag'), ('cameras: [rear]', 'rear')):
        file.write_text(f'questions:\n- ask: what?\n  {place}\n  expect: {{exact: a}}\n')
        with pytest.raises(ReplayError, match=rf"q\.yaml:2: question 'q1': .*{words}"):
            run_bag_test(path, read_questions(file), ScriptedModel())
