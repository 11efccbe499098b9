"""Files of questions: what they say, and where they are wrong, to the line."""

import re
from pathlib import Path

import pytest

from tww_ros.errors import ReplayError
from tww_ros.replay.bag_questions import ExpectedEvidence, read_questions

GOOD = """\
model: tiny-random
quantization: nf4
settings: {watch.sample_fps: 1, note.enabled: false}
cameras: {front: /front/image}
questions:
  - name: door
    ask: Is the door open?
    at: 1:30
    choices: ['yes', 'no']
    session: a
    cameras: [front]
    max_new_tokens: 8
    expect: {choice: 'yes', probability: 0.8, evidence: {from: 80, to: 90, share: 0.5}}
  - ask: What is there?
    expect: {contains: cup, exact: A cup., regex: '^A'}
  - ask: And now?
    at_ns: 1700000000000000000
    expect:
      contains: [red, cup]
"""


def test_good(tmp_path):
    (tmp_path / 'door.yaml').write_text(GOOD)
    read = read_questions(tmp_path / 'door.yaml')
    assert (read.model, read.quantization, read.cameras) == (
        'tiny-random', 'nf4', {'front': '/front/image'})
    assert read.settings == {'watch.sample_fps': 1.0, 'note.enabled': False}
    first, second, third = read.questions
    assert (first.name, first.line, first.at_s, first.at_ns) == ('door', 6, 90.0, None)
    assert first.question.choices == ('yes', 'no') and first.question.session == 'a'
    assert first.question.cameras == ('front',) and first.question.max_new_tokens == 8
    assert (first.expected.choice, first.expected.probability) == ('yes', 0.8)
    assert first.expected.evidence == ExpectedEvidence(80.0, 90.0, '', 0.5)
    assert (second.name, second.line, second.at_s, second.at_ns) == ('q2', 14, None, None)
    assert (second.expected.contains, second.expected.exact, second.expected.regex) == (
        ('cup',), 'A cup.', '^A')
    assert third.at_ns == 1_700_000_000 * 10**9 and third.expected.contains == ('red', 'cup')


@pytest.mark.parametrize('old, new, line, words', [
    ('at: 1:30', 'at: -1', 8, r'questions\[0\].at: expected a number of at least 0, got -1'),
    ('at: 1:30', 'at: soon', 8, 'at least 0, got "soon"'),
    ('at: 1:30', 'at: .nan', 8, 'at least 0'),
    ("['yes', 'no']", '[yes, no]', 9, r'choices\[0\]: expected a text, got true; .*quotes'),
    ("choice: 'yes'", 'choice: maybe', 13, 'expect.choice: expected one of yes, no, got "maybe"'),
    ("choice: 'yes', ", '', 13, 'probability: expected choice beside it, got none'),
    ('probability: 0.8', 'probability: 80', 13, 'from 0 to 1, got 80'),
    ('from: 80, ', '', 13, 'evidence.from: expected a value, got nothing'),
    ('to: 90', 'to: 70', 13, 'evidence.to: expected a number of at least 80, got 70'),
    ("regex: '^A'", "regex: '('", 15, r'regular expression of Python, got .*unterminated'),
    ('    at_ns: 17', '    at: 3\n    at_ns: 17', 18, 'expected at or at_ns, got both'),
    ('  - ask: And now?\n', '  - name: door\n    ask: And now?\n', 16,
     "name of its own for every question, got 'door', as on line 6"),
    ('    session: a', '    sesion: a', 10, "one of the keys name, .* got 'sesion'"),
    ('    session: a', '    at: 4', 10, "every key once, got 'at' twice"),
    ('watch.sample_fps: 1', 'watch.fps: 1', 3, 'a setting of the engine .* got .watch.fps'),
    ('watch.sample_fps: 1', 'watch.sample_fps: 99', 3, 'watch.sample_fps: expected 0.05 to 60'),
    ('quantization: nf4', 'quantization: nf5', 2, 'expected one of none, int8, nf4'),
    ('    ask: Is the door open?\n', '', 6, r'questions\[0\].ask: expected a value'),
    ("['yes', 'no']", "['yes', 'yes']", 6, 'choices must differ'),
    ('{contains: cup, exact: A cup., regex: \'^A\'}', '{}', 15, 'at least one of exact'),
    ('model: tiny-random', 'model: [', 3, 'expected YAML'),
])
def test_wrong(tmp_path, old, new, line, words):
    assert GOOD.count(old) == 1
    file = tmp_path / 'door.yaml'
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ReplayError, match=words) as caught:
        read_questions(file)
    assert str(caught.value).startswith(f'{file}:{line}: '), caught.value


@pytest.mark.parametrize('content, words', [
    (b'', 'empty file'), (b'- a', 'expected a mapping of model'), (b'\xff\xfe\x00', 'UTF-8'),
    (b'questions: []', 'at least one question'), (b'model: a', 'questions: expected a value'),
    (b'questions: &a [*a]', 'alias of itself'), (b'a: \x00', 'expected YAML'),
    (b'questions: 2001-99-99', 'expected YAML|a list'), (b'[' * 5_000, 'levels|YAML'),
])
def test_no_such_file_of_questions(tmp_path, content, words):
    file = tmp_path / 'q.yaml'
    file.write_bytes(content)
    with pytest.raises(ReplayError, match=words) as caught:
        read_questions(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ReplayError, match='No such file'):
        read_questions(tmp_path / 'other.yaml')


def test_example_of_the_docs(tmp_path):
    page = (Path(__file__).parents[2] / 'docs/bag_tests.md').read_text(encoding='utf-8')
    yaml, = re.findall(r'```yaml\n(.*?)```', page, re.S)
    (tmp_path / 'door.yaml').write_text(yaml)
    read = read_questions(tmp_path / 'door.yaml')
    assert [asked.name for asked in read.questions] == ['door', 'cup']
    python, = re.findall(r'```python\n(.*?)```', page, re.S)
    compile(python, 'bag_tests.md', 'exec')
