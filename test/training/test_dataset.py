"""Data sets of the tabletop: format, round trip, kills, batches."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tww_ros.errors import DatasetError
from tww_ros.training import tabletop
from tww_ros.training.build import BuildOptions, build, world_seed
from tww_ros.training.dataset import Dataset, DatasetBatches, read_dataset
from tww_ros.training.embedded import settings, untrained
from tww_ros.training.layout import plan
from tww_ros.training.validate import validate
from tww_ros.world.table import TEST_SEEDS, TRAIN_SEEDS

ROOT = Path(__file__).resolve().parents[2]
# Every key of the reference's sample, and the types of its values.
REFERENCE_KEYS = {
    'dataset': str, 'timestamps': list, 'original_resolution': list,
    'normalized_resolution': list, 'video_duration': float, 'video_fps': float,
    'sample_fps': float, 'num_frames': int, 'frame_files': list, 'sample_timestamps': list,
    'segment_info': list, 'is_image_sequence': bool, 'frames_path': str, 'index': int,
    'original_questions': list}
# The reference's sample, without the frames.
REFERENCE = {
    'video': '/path/to/sample_video.mp4',
    'conversations': [
        {'from': 'human', 'timestamps': 5.0, 'value': '<video>\nWhat is happening?\n'
                                                      'A. cooking\nB. reading'},
        {'from': 'gpt', 'value': 'Somebody holds a book.\nAnswer: B'},
        {'from': 'human', 'timestamps': 10.0, 'value': 'What next?\nA. sits down\nB. runs'},
        {'from': 'gpt', 'value': 'The knees bend.\nAnswer: A'}],
    'metadata': {
        'dataset': 'sample', 'timestamps': [5.0, 10.0], 'original_resolution': [128, 72],
        'normalized_resolution': [64, 36], 'video_duration': 15.0, 'video_fps': 30.0,
        'sample_fps': 1.0, 'num_frames': 10,
        'frame_files': [f'frame_{number:04d}.jpg' for number in range(1, 11)],
        'sample_timestamps': [float(second) for second in range(1, 11)],
        'segment_info': [{'start': 0.0, 'end': 5.0, 'num_frames': 5},
                         {'start': 5.0, 'end': 10.0, 'num_frames': 5}],
        'is_image_sequence': False, 'frames_path': 'raw_picture/0/', 'index': 0,
        'original_questions': [
            {'question': 'What is happening?', 'options': ['A. cooking', 'B. reading'],
             'answer': 'B'},
            {'question': 'What next?', 'options': ['A. sits down', 'B. runs'], 'answer': 'A'}]}}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of each stage, frames without loss."""
    place = tmp_path_factory.mktemp('data') / 'set'
    assert build(BuildOptions(place, samples=2, seed=5, size_px=96, frames='png')) == 6
    return place


@pytest.fixture(scope='module')
def model():
    return untrained(seed=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def test_keys_are_those_of_the_reference(folder: Path) -> None:
    for number in range(6):
        told = json.loads((folder / f'data_{number:06d}.json').read_text())
        assert list(told) == ['video', 'conversations', 'metadata']
        metadata = told['metadata']
        own = metadata.pop('tww')
        assert {key: type(value) for key, value in metadata.items()} == REFERENCE_KEYS
        assert own['stage'] == number // 2 + 1 and metadata['index'] == number
        assert metadata['frames_path'] == f'raw_picture/{number}/'
        files = sorted(path.name for path in (folder / metadata['frames_path']).iterdir())
        assert files == metadata['frame_files'] and files[0] == 'frame_0001.png'
        turns = told['conversations']
        assert [turn['from'] for turn in turns] == ['human', 'gpt'] * (len(turns) // 2)
        assert turns[0]['value'].startswith('<video>\n')
        for k, question in enumerate(metadata['original_questions']):
            human, gpt = turns[2 * k]['value'], turns[2 * k + 1]['value']
            asked = '\n'.join([question['question'], *question['options']])
            assert human.removeprefix('<video>\n') == asked
            assert gpt == f'{own["questions"][k]["reasoning"]}\nAnswer: {question["answer"]}'
            if question['options']:
                letter = dict(zip('ABCD', question['options'], strict=False))[question['answer']]
                assert letter == f'{question["answer"]}. {own["questions"][k]["answer"]}'
            else:
                assert question['answer'] == own['questions'][k]['answer']


def test_what_is_read_is_what_was_sampled(folder: Path, model) -> None:
    config = settings()
    recipes = (tabletop.SINGLE, tabletop.MULTI, tabletop.LONG)
    options = BuildOptions(folder, samples=2, seed=5)
    number = -1
    for number, read in enumerate(read_dataset(folder)):
        stage = number // 2 + 1
        recipe = dataclasses.replace(recipes[stage - 1], video='all', sessions=1,
                                     late_share=0.0)
        made = tabletop.sample(world_seed(options, stage, number % 2), recipe, 96)
        assert read.rounds == made.rounds and len(read.rounds) > 0
        ours, theirs = plan(read, model.codec, config), plan(made, model.codec, config)
        assert (ours.ids, ours.labels, ours.what) == (theirs.ids, theirs.labels, theirs.what)
        assert np.array_equal(np.concatenate(ours.positions, 1),
                              np.concatenate(theirs.positions, 1))
        for one, other in zip(ours.patches, theirs.patches, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one.frames, other.frames,
                                                            strict=True))
    assert number == 5


def test_the_stages_differ_as_they_should(folder: Path) -> None:
    entries = [Dataset(folder).entry(number) for number in range(6)]
    for entry in entries:
        sessions = [question.session for question in entry.questions]
        assert len(set(sessions)) == (len(sessions) if entry.stage == 1 else 1)
        assert (len(entry.segments) >= 60) == (entry.stage == 3)
    back = [question.after - 1 - min(question.proof)
            for entry in entries[4:] for question in entry.questions if question.proof]
    # Two seconds a segment: some proofs lie more than a minute back.
    assert max(back) > 30


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    options = BuildOptions(tmp_path / 'a', stages=(2,), samples=2, seed=9, size_px=64)
    build(options)
    build(dataclasses.replace(options, out=tmp_path / 'b'))
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    build(dataclasses.replace(options, out=tmp_path / 'c', seed=10))
    assert contents(tmp_path / 'a') != contents(tmp_path / 'c')
    seeds = {split: {world_seed(dataclasses.replace(options, split=split), 1, k)
                     for k in range(3)} for split in ('train', 'test')}
    assert all(seed in TRAIN_SEEDS for seed in seeds['train'])
    assert all(seed in TEST_SEEDS for seed in seeds['test'])


def test_killed_and_resumed(tmp_path: Path) -> None:
    arguments = ['data', 'tabletop', '--stage', '1', '--samples', '40', '--size', '64', '--out']
    process = subprocess.Popen(
        [sys.executable, '-m', 'tww_ros.cli', *arguments, str(tmp_path / 'a')], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        while not (tmp_path / 'a' / 'data_000002.json').exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(30)
    done = len(list((tmp_path / 'a').glob('data_*.json')))
    assert 3 <= done < 40 and not (tmp_path / 'a' / 'dataset.json').exists()
    for use in (lambda: list(read_dataset(tmp_path / 'a')), lambda: validate(tmp_path / 'a')):
        with pytest.raises(DatasetError, match=r'not complete.*--resume'):
            use()
    options = BuildOptions(tmp_path / 'a', stages=(1,), samples=40, size_px=64)
    with pytest.raises(DatasetError, match='--resume'):
        build(options)
    with pytest.raises(DatasetError, match='expected the same seed as before, 0, got 1'):
        build(dataclasses.replace(options, seed=1), resume=True)
    build(options, resume=True)
    build(dataclasses.replace(options, out=tmp_path / 'b'))
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'thesis.tex').write_text('words')
    for resume in (False, True):
        with pytest.raises(DatasetError, match='expected an empty folder'):
            build(BuildOptions(tmp_path, samples=1), resume)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


@pytest.mark.parametrize('change, message', [
    ({'samples': 0}, 'samples: expected at least 1, got 0'),
    ({'size_px': 8}, 'size: expected 64 to 1024 px, got 8'),
    ({'split': 'dev'}, "split: expected train or test, got 'dev'"),
    ({'frames': 'gif'}, "frames: expected jpg or png, got 'gif'")])
def test_bad_options(change: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        BuildOptions(Path('nowhere'), **change)


def test_the_report_counts(folder: Path, model) -> None:
    report = validate(folder, model.codec, settings())
    assert report.errors == []
    told = [json.loads(path.read_text())['metadata'] for path in folder.glob('data_*.json')]
    assert report.samples == 6 and report.stages == {1: 2, 2: 2, 3: 2}
    assert report.frames == sum(one['num_frames'] for one in told)
    assert report.segments == sum(len(one['segment_info']) for one in told)
    questions = [question for one in told for question in one['tww']['questions']]
    assert report.rounds == len(questions) == report.kinds.total() == report.families.total()
    assert report.families['present'] == sum(q['family'] == 'present' for q in questions)
    plans = [plan(sample, model.codec, settings()) for sample in read_dataset(folder)]
    assert report.tokens == sum(len(one) for one in plans)
    assert report.learnt_tokens == sum(label >= 0 for one in plans for label in one.labels)
    assert f'{report.tokens}, of which' in ' '.join(report.lines())


def write_reference(folder: Path) -> None:
    (folder / 'raw_picture' / '0').mkdir(parents=True)
    for number in range(1, 11):
        Image.new('RGB', (64, 36), (20 * number, 0, 0)).save(
            folder / f'raw_picture/0/frame_{number:04d}.jpg')
    (folder / 'data_000000.json').write_text(json.dumps(REFERENCE))


def test_data_in_the_reference_format_is_read(tmp_path: Path, model) -> None:
    write_reference(tmp_path)
    assert validate(tmp_path).errors == []
    sample, = read_dataset(tmp_path)
    # Pairs of frames; the odd last one is a patch of its own. Times count from the first frame.
    assert [[patch.time_s for patch in segment.patches] for segment in sample.segments] == [
        [0.5, 2.5, 4.0], [5.5, 7.5, 9.0]]
    assert [segment.note for segment in sample.segments] == [None, None]
    assert [(due.after, due.answer, due.choices, due.reasoning) for due in sample.rounds] == [
        (1, 'reading', ('cooking', 'reading'), 'Somebody holds a book.'),
        (2, 'sits down', ('sits down', 'runs'), 'The knees bend.')]
    planned = plan(sample, model.codec, settings())
    assert sum(planned.visual) == sum(p.rows * p.columns for p in planned.patches)


# Batches

def test_batches_are_of_one_size_and_repeat(tmp_path: Path, model) -> None:
    config = settings()
    place = tmp_path / 'set'
    build(BuildOptions(place, stages=(1, 2), samples=5, seed=2, size_px=64))
    # Of some samples the frames are wide: the model sees another grid.
    for number in (1, 2, 7):
        file = place / f'data_{number:06d}.json'
        told = json.loads(file.read_text())
        told['metadata']['normalized_resolution'] = [256, 64]
        del told['metadata']['tww']['tabletop']
        for name in told['metadata']['frame_files']:
            path = place / told['metadata']['frames_path'] / name
            with Image.open(path) as picture:
                wide = picture.resize((256, 64))
            wide.save(path)
        file.write_text(json.dumps(told))
    batches = DatasetBatches(place, model, config, tokens=400, seed=3)
    grids = set()
    for number in range(8):
        for make in (batches.batch, batches.held_out):
            batch = make('single', number)
            again = make('single', number)
            assert batch.ids.tolist() == again.ids.tolist() and len(batch.ids) >= 400
            assert batch.pixels.equal(again.pixels)
            assert (batch.grid == batch.grid[0]).all()
            grids.add(tuple(batch.grid[0].tolist()))
    # 64×64 px is seen at 96×96, 256×64 at 192×32; patches are 16 px.
    assert grids == {(1, 6, 6), (1, 2, 12)}
    other = DatasetBatches(place, model, config, tokens=400, seed=4)
    assert any(batches.batch('single', k).ids.tolist() != other.batch('single', k).ids.tolist()
               for k in range(12))


def test_held_out_samples_are_never_trained_on(tmp_path: Path, model) -> None:
    place = tmp_path / 'set'
    build(BuildOptions(place, stages=(1, 2), samples=6, size_px=64))
    batches = DatasetBatches(place, model, settings(), tokens=400)
    for stage, own in (('single', range(6)), ('multi', range(6, 12)), ('long', range(12))):
        trained = batches.samples(stage, held_out=False)
        held = batches.samples(stage, held_out=True)
        assert trained and held and set(trained) | set(held) == set(own)
        assert not set(trained) & set(held)


def test_one_sample_is_not_enough_to_train_on(tmp_path: Path, model) -> None:
    write_reference(tmp_path)
    with pytest.raises(DatasetError, match='expected at least 2 samples'):
        DatasetBatches(tmp_path, model, settings(), tokens=400)


def test_a_leak_stops_training_before_it_begins(tmp_path: Path, model) -> None:
    place = tmp_path / 'set'
    build(BuildOptions(place, stages=(1,), samples=3, size_px=64))
    file = place / 'data_000002.json'
    told = json.loads(file.read_text())
    told['metadata']['tww']['segments'][0]['note'] += '; take it at 999 s'
    file.write_text(json.dumps(told))
    with pytest.raises(DatasetError, match=r'data_000002.json: metadata.tww.segments\[0\].note'):
        DatasetBatches(place, model, settings(), tokens=400)
