"""Data sets with something wrong in them: every message names the file and the place."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tww_ros.cli import main
from tww_ros.errors import DatasetError
from tww_ros.training.build import BuildOptions, build
from tww_ros.training.checks import late_times
from tww_ros.training.dataset import read_dataset
from tww_ros.training.validate import validate

FILE = 'data_000001.json'


@pytest.fixture(scope='module')
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp('data') / 'set'
    build(BuildOptions(place, stages=(1, 2), samples=1, seed=3, size_px=64))
    assert validate(place).errors == []
    return place


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / 'set'))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    told = json.loads((folder / FILE).read_text())
    change(told)
    (folder / FILE).write_text(json.dumps(told))


def own(told: dict[str, Any]) -> dict[str, Any]:
    return told['metadata']['tww']


def say(told: dict[str, Any], number: int, reasoning: str) -> None:
    """Change a reasoning everywhere."""
    own(told)['questions'][number]['reasoning'] = reasoning
    value = told['conversations'][2 * number + 1]['value']
    told['conversations'][2 * number + 1]['value'] = (
        f'{reasoning}\nAnswer:{value.rpartition("Answer:")[2]}')


def refused(folder: Path, message: str) -> None:
    """Both readers refuse the second sample, and the first one is still counted."""
    with pytest.raises(DatasetError, match=message):
        list(read_dataset(folder))
    report = validate(folder)
    assert len(report.errors) == 1 and re.search(message, report.errors[0]), report.errors
    assert report.samples == 1


def place(path: str, expected: str) -> str:
    return f'^{re.escape(f"{FILE}: {path}: expected {expected}")}'


def put(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        for key in keys[:-1]:
            told = told[key]
        told[keys[-1]] = value
    return change


@pytest.mark.parametrize('change, message', [
    (put('video', value=7), place('video', 'a text that is not empty, got 7')),
    (put('conversations', value={}), place('conversations', 'an array, got {}')),
    (put('conversations', 3, 'value', value=None),
     place('conversations[3].value', 'a text that is not empty, got null')),
    (put('conversations', 2, 'from', value='gpt'),
     place('conversations[2].from', "'human', got \"gpt\"")),
    (put('conversations', 0, 'timestamps', value='soon'),
     place('conversations[0].timestamps', 'a number of at least 0, got "soon"')),
    (put('conversations', 0, 'timestamps', value=True),
     place('conversations[0].timestamps', 'a number of at least 0, got true')),
    (put('conversations', 0, 'timestamps', value=float('nan')),
     place('conversations[0].timestamps', 'a number of at least 0, got NaN')),
    (put('metadata', 'timestamps', 0, value=1.5), place('metadata.timestamps[0]', '')),
    (put('metadata', 'video_duration', value=5), place('metadata.sample_timestamps[5]',
                                                       'a time within video_duration, 5 s')),
    (put('metadata', 'num_frames', value=3), place('metadata.frame_files', '3 items')),
    (put('metadata', 'sample_timestamps', 4, value=0.3),
     place('metadata.sample_timestamps[4]', 'a time after')),
    (put('metadata', 'segment_info', 2, 'start', value=0.1),
     place('metadata.segment_info[2].start', '')),
    (put('metadata', 'segment_info', 2, 'end', value=0.1),
     place('metadata.segment_info[2].end', 'a time of at least its start')),
    (put('metadata', 'segment_info', 0, 'num_frames', value=3),
     place('metadata.sample_timestamps[2]', 'a time within metadata.segment_info[0]')),
    (put('metadata', 'segment_info', 0, 'num_frames', value=0),
     place('metadata.segment_info[0].num_frames', 'an integer of at least 1, got 0')),
    (put('metadata', 'frame_files', 0, value='../../thesis.jpg'),
     place('metadata.frame_files[0]', 'the name of a file')),
    (put('metadata', 'frames_path', value='/etc'),
     place('metadata.frames_path', 'a folder within the data set')),
    (put('metadata', 'index', value=0), place('metadata.index', '000001')),
    (put('metadata', 'is_image_sequence', value=1),
     place('metadata.is_image_sequence', 'true or false, got 1')),
    (put('metadata', 'normalized_resolution', value=[64]),
     place('metadata.normalized_resolution', '2 items')),
    (put('metadata', 'original_questions', value=[]),
     place('metadata.original_questions', '')),
    (put('metadata', 'tww', 'version', value=2), place('metadata.tww.version', '1, got 2')),
    (put('metadata', 'tww', 'stage', value=4),
     place('metadata.tww.stage', 'an integer from 1 to 3, got 4')),
    (put('metadata', 'tww', 'segments', 1, 'note', value=''),
     place('metadata.tww.segments[1].note', 'a text that is not empty')),
    (put('metadata', 'tww', 'segments', 1, 'note', value='done<EOT>'),
     place('metadata.tww.segments[1].note', "a text without '<EOT>'")),
    (put('metadata', 'tww', 'questions', 0, 'after', value=1),
     place('metadata.tww.questions[0].after', '')),
    (put('metadata', 'tww', 'questions', 0, 'notes_visible', value=0),
     place('metadata.tww.questions[0].notes_visible', '')),
    (put('metadata', 'tww', 'questions', 0, 'proof', value=['a']),
     place('metadata.tww.questions[0].proof[0]', 'an integer')),
])
def test_wrong_values(folder: Path, change: Callable, message: str) -> None:
    edit(folder, change)
    refused(folder, message)


@pytest.mark.parametrize('keys', [
    ('video',), ('metadata',), ('metadata', 'segment_info'), ('metadata', 'sample_fps'),
    ('metadata', 'tww', 'segments', 2, 'note'), ('metadata', 'tww', 'questions', 1, 'session'),
    ('conversations', 1, 'value')])
def test_missing_keys(folder: Path, keys: tuple) -> None:
    def remove(told: dict[str, Any]) -> None:
        for key in keys[:-1]:
            told = told[key]
        del told[keys[-1]]

    edit(folder, remove)
    path = re.sub(r'\.(\d+)', r'[\1]', '.'.join(str(key) for key in keys))
    refused(folder, place(path, 'a value, got none'))


def test_corrupt_json(folder: Path) -> None:
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(text[:len(text) // 2])
    refused(folder, rf'^{FILE}: line \d+ column \d+: expected JSON, got')
    (folder / FILE).write_text('[' * 100_000)
    refused(folder, rf'^{FILE}: ')
    (folder / FILE).write_text('[]')
    refused(folder, rf'^{FILE}: expected an object, got \[\]')
    (folder / FILE).write_bytes(b'\xff\xfe\x00')
    refused(folder, rf'^{FILE}: expected UTF-8 text')


def test_missing_files(folder: Path) -> None:
    frame = folder / 'raw_picture/1/frame_0003.jpg'
    kept = frame.read_bytes()
    where = rf'^{FILE}: metadata.frame_files\[2\]: expected '
    frame.unlink()
    refused(folder, where + 'a picture at raw_picture/1/frame_0003.jpg, got no such file')
    frame.write_bytes(kept[:len(kept) // 2])
    refused(folder, where + 'a picture at raw_picture/1/frame_0003.jpg, got one that cannot be')
    Image.new('RGB', (64, 32)).save(frame)
    refused(folder, where + '64×64 px')
    (folder / FILE).unlink()
    with pytest.raises(DatasetError, match='dataset.json: samples: expected 2 samples.*got 1; the '
                                           f'first that is missing is {FILE}'):
        validate(folder)


def test_no_data_set(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / 'none', 'got nothing'), (tmp_path, 'expected dataset.json'
                                                                ' or data_000000.json')):
        with pytest.raises(DatasetError, match=message):
            validate(folder)


def choice(folder: Path) -> int:
    """Number of a question with options."""
    questions = own(json.loads((folder / FILE).read_text()))['questions']
    return next(k for k, question in enumerate(questions) if question['choices'])


def test_answers_and_letters(good: Path, folder: Path) -> None:
    k = choice(good)
    questions = own(json.loads((good / FILE).read_text()))['questions']
    choices, answer = questions[k]['choices'], questions[k]['answer']
    wrong = next(other for other in choices if other != answer)
    edit(folder, put('metadata', 'tww', 'questions', k, 'answer', value='a green cow'))
    refused(folder, place(f'metadata.tww.questions[{k}].answer', 'one of its choices, '))
    edit(folder, put('metadata', 'tww', 'questions', k, 'answer', value=wrong))
    refused(folder, place(f'metadata.tww.questions[{k}].answer', f'"{answer}", as'))
    edit(folder, put('metadata', 'tww', 'questions', k, 'answer', value=answer))
    letter = 'ABCD'[choices.index(answer)]
    edit(folder, put('metadata', 'original_questions', k, 'answer', value='Z'))
    refused(folder, place(f'metadata.original_questions[{k}].answer', 'one of the letters'))
    edit(folder, put('metadata', 'original_questions', k, 'answer',
                     value='ABCD'[choices.index(wrong)]))
    refused(folder, place(f'conversations[{2 * k + 1}].value', 'a text that ends with'))
    edit(folder, put('metadata', 'original_questions', k, 'answer', value=letter))
    edit(folder, put('metadata', 'original_questions', k, 'options', 0, value=choices[0]))
    refused(folder, place(f'metadata.original_questions[{k}].options[0]', 'a text that starts'))


def test_options_in_the_question_are_those_of_the_metadata(folder: Path) -> None:
    k = choice(folder)

    def shuffle(told: dict[str, Any]) -> None:
        human = told['conversations'][2 * k]
        human['value'] = human['value'].replace('A. ', 'A. no ')

    edit(folder, shuffle)
    refused(folder, place(f'conversations[{2 * k}].value', ''))


# What comes later

def test_a_leak_in_a_note(folder: Path) -> None:
    edit(folder, lambda told: own(told)['segments'][2].update(note='take red cup at 47 s'))
    refused(folder, place('metadata.tww.segments[2].note',
                          "no time after its segment's end") + ".*'47 s'.*leaks what comes later")


@pytest.mark.parametrize('text', ['it is 500 s', 'for 500 seconds', '500s', '500.5 sec',
                                  'a 500-second walk'])
def test_a_leak_of_time_in_a_reasoning(folder: Path, text: str) -> None:
    edit(folder, lambda told: say(told, 0, text))
    refused(folder, place('metadata.tww.questions[0].reasoning', 'no time after its question'))


def test_a_leak_of_a_later_note_in_a_reasoning(folder: Path) -> None:
    def leak(told: dict[str, Any]) -> None:
        del own(told)['tabletop']
        after = own(told)['questions'][0]['after']
        own(told)['segments'][after]['note'] = 'A red kite lands; it is torn.'
        say(told, 0, f'{own(told)["segments"][1]["note"]}; It is torn')

    edit(folder, leak)
    after = own(json.loads((folder / FILE).read_text()))['questions'][0]['after']
    refused(folder, place('metadata.tww.questions[0].reasoning', 'only what segments 0 to ')
            + f".*'it is torn' of segment {after}'s note; this leaks what comes later")
    # Told before too, it is no leak.
    edit(folder, lambda told: own(told)['segments'][0].update(note='it is torn'))
    assert validate(folder).errors == [] and len(list(read_dataset(folder))) == 2


@pytest.mark.parametrize('told_as', ['put red kite center', 'put red kite center, at {} s',
                                     'put red kite center at {} s',
                                     'put red kite center at {} s, now {} s, 0 s ago'])
@pytest.mark.parametrize('noted_as', ['{} s: put red kite center', 'put red kite center at {} s',
                                      '#7 put red kite center at {} s'])
def test_a_leak_of_a_later_event_without_its_time(folder: Path, noted_as: str,
                                                  told_as: str) -> None:
    """Notes may begin or end with their time, and begin with a number; reasonings cite them with
    and without."""
    def leak(told: dict[str, Any]) -> None:
        del own(told)['tabletop']
        after = own(told)['questions'][0]['after']
        segment = own(told)['segments'][after]
        at_s = int(told['metadata']['segment_info'][after]['start'])
        segment['note'] = noted_as.format(at_s)
        say(told, 0, told_as.format(0, 0))

    edit(folder, leak)
    refused(folder, place('metadata.tww.questions[0].reasoning', 'only what segments 0 to ')
            + ".*'put red kite center' of segment .*leaks what comes later")


def test_a_note_that_is_being_written_may_be_told(folder: Path) -> None:
    """The question sees the newest segment's frames before its note is finished."""
    def tell(told: dict[str, Any]) -> None:
        del own(told)['tabletop']
        question = own(told)['questions'][0]
        own(told)['segments'][question['after'] - 1]['note'] = 'a red kite lands'
        question['notes_visible'] = question['after'] - 1
        for other in own(told)['questions']:
            if other['after'] == question['after']:
                other['notes_visible'] = question['notes_visible']
        say(told, 0, 'a red kite lands')

    edit(folder, tell)
    assert validate(folder).errors == []


def test_a_leak_in_an_answer(folder: Path) -> None:
    def leak(told: dict[str, Any]) -> None:
        k = next(k for k, question in enumerate(own(told)['questions'])
                 if not question['choices'])
        own(told)['questions'][k]['answer'] = 'at 900 s'
        told['metadata']['original_questions'][k]['answer'] = 'at 900 s'
        value = told['conversations'][2 * k + 1]['value']
        told['conversations'][2 * k + 1]['value'] = (
            f'{value.rpartition("Answer:")[0]}Answer: at 900 s')

    edit(folder, leak)
    refused(folder, rf'^{FILE}: metadata.tww.questions\[\d+\].answer: expected no time after')


def test_a_leak_in_a_proof(folder: Path) -> None:
    def leak(told: dict[str, Any]) -> None:
        question = own(told)['questions'][0]
        question['proof'] = [question['after']]

    edit(folder, leak)
    refused(folder, place('metadata.tww.questions[0].proof', 'segments before '))


def test_stage_one_has_one_round_a_session(folder: Path) -> None:
    edit(folder, put('metadata', 'tww', 'stage', value=1))
    refused(folder, place('metadata.tww.questions[1].session', 'one round a session'))


def test_what_a_stage_demands(folder: Path) -> None:
    edit(folder, lambda told: say(told, 2, ''))
    edit(folder, lambda told: told['conversations'][5].update(
        value=told['conversations'][5]['value'].strip()))
    refused(folder, place('metadata.tww.questions[2].reasoning', 'a reasoning, as stage 2'))


# The simulator's own answers

def test_tabletop_data_is_compared_with_the_simulator(folder: Path) -> None:
    before = own(json.loads((folder / FILE).read_text()))['segments'][1]['note']
    edit(folder, lambda told: own(told)['segments'][1].update(note='a cat walks by'))
    assert len(list(read_dataset(folder))) == 2
    assert validate(folder).errors == [
        f'{FILE}: metadata.tww.segments[1].note: expected "{before}", as the simulator says, got '
        '"a cat walks by"; it was edited, or made by another version']


def test_tabletop_data_with_another_seed(folder: Path) -> None:
    edit(folder, lambda told: own(told)['tabletop'].update(seed=1))
    error, = validate(folder).errors
    assert error.startswith(f'{FILE}: metadata.') and 'as the simulator says' in error
    edit(folder, lambda told: own(told).update(tabletop={'seed': 'x'}))
    error, = validate(folder).errors
    assert error.startswith(f'{FILE}: metadata.tww.tabletop.seed: expected an integer')


@pytest.mark.parametrize('text, late', [
    ('at 10 s', []), ('at 11 s', ['11 s']), ('at 10.2 s, at 9 s', ['10.2 s']),
    ('12 seconds ago; 3s', ['12 seconds']), ('99 stars, 12 sheep, x12 s', []),
    ('number 40, then 15 SECONDS', ['15 SECONDS'])])
def test_times_are_found(text: str, late: list[str]) -> None:
    assert late_times(text, 10.0) == late


def test_the_command_lists_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(['data', 'validate', str(folder)]) == 0
    assert 'all of it is right' in capsys.readouterr().out
    edit(folder, put('video', value=7))
    assert main(['data', 'validate', str(folder)]) == 1
    out, err = capsys.readouterr()
    assert err == f'{FILE}: video: expected a text that is not empty, got 7\n'
    assert '1 samples, ' in out and '1 samples are wrong' in out
    (folder / 'dataset.json').rename(folder / 'dataset.partial.json')
    assert main(['data', 'validate', str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f'tww: {folder} is not complete')
