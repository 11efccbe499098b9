"""`tww memory` as people use it: exit codes, words, JSON, files, one line for what is wrong."""

import base64
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from memory.filled import IDENTITY, S, fill_from_table, put, segment

from tww_ros.cli import build_parser, main
from tww_ros.memory.commands import told_time
from tww_ros.memory.store import Store
from tww_ros.memory.store_files import DATABASE
from tww_ros.memory.store_schema import StoredAnswer, StoredNote
from tww_ros.types import Pose

COMMANDS = ('list', 'show', 'search', 'export', 'report')


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    """14 segments of the tabletop."""
    folder = tmp_path_factory.mktemp('memory') / 'table'
    with Store.open(folder, IDENTITY) as store:
        fill_from_table(store, segments=14, size_px=64)
    return folder


@pytest.fixture
def small(tmp_path):
    """Two segments of two cameras."""
    folder = tmp_path / 'small'
    with Store.open(folder, IDENTITY) as store:
        put(store, 0, 'the red\ncup', thumbnail=b'\xff\xd8 jpeg',
            pose=Pose('map', (1.25, 2.0, 0.0)), extra={'start': 7})
        store.add_segment(segment(1, camera='rear'))
        store.add_note(StoredNote(0, 'a cup', 'episode', 1))
        store.add_answer(StoredAnswer('where?', 'left', 5 * S, 4 * S, evidence=((0, 0.5),)))
        store.add_epoch(0, 9)
    return folder


def out(capsys, *arguments):
    assert main(['memory', *map(str, arguments)]) == 0
    return capsys.readouterr().out


def fails(capsys, *arguments):
    assert main(['memory', *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith('tww: ') and err.count('\n') == 1 and 'Traceback' not in err
    return err


def test_list(small, capsys):
    lines = out(capsys, 'list', small).splitlines()
    assert '2 segments, 1 notes, 1 episodes, 1 answers' in lines[0]
    assert 'made by tiny, continuous positions' in lines[0]
    assert lines[1].split() == '0 front 0.0 s – 2.0 s 2 frames the red cup'.split()
    assert lines[2].split() == '1 rear 3.0 s – 5.0 s 2 frames'.split()
    assert len(out(capsys, 'list', small, '--camera', 'rear').splitlines()) == 2
    newest, = out(capsys, 'list', small, '--last', 1).splitlines()[1:]
    assert newest.split() == lines[2].split()
    assert len(out(capsys, 'list', small, '--last', 0).splitlines()) == 1
    rows = [json.loads(line) for line in out(capsys, 'list', small, '--json').splitlines()]
    assert [(row['id'], row['camera'], row['note']) for row in rows] == [
        (0, 'front', 'the red\ncup'), (1, 'rear', '')]
    assert rows[0]['pose']['position_m'] == [1.25, 2.0, 0.0]


def test_list_while_it_is_written_to(tmp_path, capsys):
    with Store.open(tmp_path / 'live', IDENTITY) as store:
        put(store, 0)
        assert 'note 0' in out(capsys, 'list', tmp_path / 'live')
        put(store, 1)
        assert 'note 1' in out(capsys, 'list', tmp_path / 'live')


def test_show(small, capsys, tmp_path):
    text = out(capsys, 'show', small, 0)
    for part in ('front, 0.0 s – 2.0 s, epoch 0', '2 frames, 9 tokens, closed by time',
                 'at (1.25, 2.00, 0.00) m in map', '{"start": 7}', 'note: the red cup',
                 'episode (0–1): a cup', "KV 'segment': 0.00 MB", "'where?': 'left'"):
        assert part in text
    out(capsys, 'show', small, 0, '--thumbnail', tmp_path / '0.jpg')
    assert (tmp_path / '0.jpg').read_bytes() == b'\xff\xd8 jpeg'
    row = json.loads(out(capsys, 'show', small, 0, '--json'))
    assert [note['text'] for note in row['notes']] == ['the red\ncup', 'a cup']
    assert row['answers'][0]['evidence'] == [[0, 0.5]] and row['blocks'][0]['lost'] == ''


def test_show_says_what_is_lost(small, capsys):
    next((small / 'blocks').rglob('*.safetensors')).unlink()
    Store.open(small, IDENTITY).close()
    assert "KV 'segment': lost, it is missing" in out(capsys, 'show', small, 0)


def test_search(small, capsys):
    lines = out(capsys, 'search', small, 'Where is the CUP?').splitlines()
    assert [line.split()[0] for line in lines] == ['0–1', '0']
    assert lines[1].endswith('the red cup')
    assert len(out(capsys, 'search', small, 'cup', '--limit', 1).splitlines()) == 1
    assert out(capsys, 'search', small, 'zebra') == 'no note has any of these words\n'
    assert out(capsys, 'search', small, 'zebra', '--json') == ''
    row = json.loads(out(capsys, 'search', small, 'red', '--json'))
    assert (row['segment_id'], row['kind'], row['camera']) == (0, 'note', 'front')
    assert out(capsys, 'search', small, '"red" AND (', '--camera', 'front').count('\n') == 1


def test_export(small, capsys, tmp_path):
    file = tmp_path / 'out.jsonl'
    assert out(capsys, 'export', small, file).startswith('wrote 7 lines')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row['type'] for row in rows] == ['memory', 'epoch', 'segment', 'segment', 'note',
                                             'note', 'answer']
    assert rows[0]['model']['weights'] == 'c0ffee' and rows[1] == {
        'type': 'epoch', 'epoch': 0, 't0_ns': 9}
    assert rows[2]['extra'] == {'start': 7} and 'thumbnail_jpeg' not in rows[2]
    assert rows[6]['answer'] == 'left'
    out(capsys, 'export', small, file, '--thumbnails')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert base64.b64decode(rows[2]['thumbnail_jpeg']) == b'\xff\xd8 jpeg'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.jsonl', 'small']


def test_report(table, capsys, tmp_path):
    file = tmp_path / 'page.html'
    text = out(capsys, 'report', table, file)
    assert text.startswith(f'wrote {file}: 14 segments, 14 pictures, 2 answers')
    assert '<title>table</title>' in file.read_text()
    out(capsys, 'report', table, file, '--title', 'Ground floor <b>')
    assert '<title>Ground floor &lt;b&gt;</title>' in file.read_text()


def test_what_cannot_be_done(small, tmp_path, capsys):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad' / DATABASE).write_text('no database' * 1_000)
    rest = {'list': (), 'show': (0,), 'search': ('cup',), 'export': (tmp_path / 'a.jsonl',),
            'report': (tmp_path / 'a.html',)}
    for name, more in rest.items():
        assert 'there is no such folder' in fails(capsys, name, tmp_path / 'nowhere', *more)
        assert 'got the file' in fails(capsys, name, tmp_path / 'file', *more)
        assert f'it has no {DATABASE}' in fails(capsys, name, tmp_path, *more)
        assert 'got something else' in fails(capsys, name, tmp_path / 'bad', *more)
    assert 'there is no segment 77' in fails(capsys, 'show', small, 77)
    assert 'has no picture' in fails(capsys, 'show', small, 1, '--thumbnail', tmp_path / 'x.jpg')
    for name in ('export', 'report'):
        assert 'make it first' in fails(capsys, name, small, tmp_path / 'no' / 'file')
        assert 'something else' in fails(capsys, name, small, tmp_path)
        assert 'something else' in fails(capsys, name, small, '/dev/null')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad', 'file', 'small']


def test_help_has_examples_that_are_valid(capsys):
    count = 0
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main(['memory', command, '--help'])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for line in text[text.index('examples:'):].splitlines()[1:]:
            words = shlex.split(line.partition('|')[0])
            assert words.pop(0) == 'tww' and words[1] == command
            assert hasattr(build_parser().parse_args(words), 'run')
            count += 1
    assert count >= 10


def test_looking_into_a_memory_needs_no_torch(small):
    """On a laptop without it, and at once: torch takes seconds to import."""
    code = ('import sys; sys.modules["torch"] = sys.modules["safetensors"] = None;'
            'from tww_ros.cli import main;'
            'sys.exit(max(main(["memory", *words]) for words in (["list", sys.argv[1]], '
            '["search", sys.argv[1], "cup"], ["show", sys.argv[1], "0"])))')
    done = subprocess.run([sys.executable, '-c', code, small], capture_output=True, text=True,
                          timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and 'the red cup' in done.stdout, done.stderr


@pytest.mark.parametrize('stamp_ns, text', [
    (0, '0.0 s'), (24_500_000_000, '24.5 s'), (999_999_999 * S, '999999999.0 s'),
    (1_700_000_000 * S + 250_000_000, '2023-11-14 22:13:20.2')])
def test_times_in_words(stamp_ns, text):
    assert told_time(stamp_ns) == text
