"""Data sets from users' videos: the example of the docs, formats, cuts, and the teacher."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tww_ros.cli import build_parser, main
from tww_ros.errors import DatasetError, ReplayError
from tww_ros.training.captions import VideoOptions, VideoSource, build_videos, read_captions
from tww_ros.training.dataset import Dataset, read_dataset
from tww_ros.training.embedded import settings, untrained
from tww_ros.training.layout import plan
from tww_ros.training.teacher import Teacher
from tww_ros.training.validate import validate

from ..replay.conftest import grey_level, write_video

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / 'docs' / 'training.md').read_text(encoding='utf-8')
CAPTIONS, QUESTIONS = 'shop_captions.json', 'shop.json'


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the example in the docs, and 12.5 s of video at 2 frames per second."""
    questions, captions = re.findall(r'```json\n(.*?)```', DOCS, re.S)
    (tmp_path / QUESTIONS).write_text(questions)
    (tmp_path / CAPTIONS).write_text(captions)
    write_video(tmp_path / 'shop.mp4', frames=25, fps=Fraction(2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(path: Path, edit: Callable[[Any], object]) -> None:
    told = json.loads(path.read_text())
    edit(told)
    path.write_text(json.dumps(told))


def options(shop: Path, captions: bool = True, **more: Any) -> VideoOptions:
    source = VideoSource(shop / 'shop.mp4', shop / QUESTIONS,
                         shop / CAPTIONS if captions else None)
    return VideoOptions(shop / 'data' / 'shop', (source,), **more)


def test_the_example_of_the_docs(shop: Path, capsys: pytest.CaptureFixture) -> None:
    # By itself, or started by what starts several processes.
    commands = [shlex.split(line.partition(' tww_ros.cli ')[2] or line.removeprefix('tww '))
                for block in re.findall(r'```bash\n(.*?)```', DOCS, re.S)
                for line in block.splitlines()]
    assert len(commands) == 11
    for words in commands:
        build_parser().parse_args(words[:words.index('#')] if '#' in words else words)
    build, check = (words for words in commands if '--captions' in words
                    or words[2] == 'data/shop')
    assert main(build) == 0 and main(check) == 0
    out = capsys.readouterr().out
    assert 'wrote 1 samples to data/shop' in out and '5 segments, 13 frames, 3 rounds' in out

    entry = Dataset('data/shop').entry(0)
    # 4 s a segment, and cut by the questions at 5 and 11 s.
    assert [segment.stamps_s for segment in entry.segments] == [
        (0, 1, 2, 3), (4, 5), (6, 7, 8, 9), (10, 11), (12,)]
    assert [segment.note for segment in entry.segments] == [
        'an empty shop with a counter and a shelf', 'a red box is put on the counter',
        'nothing new', 'somebody puts the red box on the shelf', 'nothing new']
    assert [(asked.at_s, asked.after, asked.noted, asked.reasoning, asked.proof)
            for asked in entry.questions] == [
        (5, 2, 2, 'a red box is put on the counter', (1,)), (5, 2, 2, 'seen now', ()),
        (11, 4, 3, 'somebody puts the red box on the shelf', ())]
    assert entry.stage == 2 and entry.size_px == (64, 48)
    told = json.loads(Path('data/shop/data_000000.json').read_text())
    assert [turn['value'] for turn in told['conversations'][2:4]] == [
        'Is anybody there?\nA. yes\nB. no', 'seen now\nAnswer: B']

    sample, = read_dataset('data/shop')
    assert [patch.time_s for segment in sample.segments for patch in segment.patches] == [
        0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12]
    second = sample.segments[1].patches[0].frames
    assert [abs(int(frame[40, 40, 0]) - grey_level(index)) < 6
            for frame, index in zip(second, (8, 10), strict=True)] == [True, True]
    planned = plan(sample, untrained().codec, settings())
    assert sum(label >= 0 for label in planned.labels) > 50


def test_srt_and_jsonl_say_the_same(shop: Path) -> None:
    captions = read_captions(shop / CAPTIONS)
    lines = [json.dumps(told) for told in json.loads((shop / CAPTIONS).read_text())]
    (shop / 'c.jsonl').write_text('\n'.join([*lines, '', '']))
    (shop / 'c.srt').write_text(
        '\ufeff1\n00:00:00,000 --> 00:00:00,000\nan empty shop with\na counter and a shelf\n\n'
        '2\r\n00:00:02,000 --> 00:00:03,500\r\n<i>a red box</i> is put on the counter\r\n\r\n'
        '00:00:08.000 --> 00:00:10.000 X1:0\nsomebody puts the red box on the shelf\n',
        encoding='utf-8', newline='')
    for name in ('c.jsonl', 'c.srt'):
        read = read_captions(shop / name)
        assert [(c.start_s, c.end_s, c.text) for c in read] == [
            (c.start_s, c.end_s, c.text) for c in captions]


def test_sessions_decide_the_stage(shop: Path) -> None:
    change(shop / QUESTIONS, lambda told: [asked.update(session=str(k))
                                           for k, asked in enumerate(told)])
    build_videos(options(shop))
    assert Dataset(shop / 'data/shop').entry(0).stage == 1


def test_large_frames_are_shrunk_and_late_captions_reported(shop: Path) -> None:
    write_video(shop / 'shop.mp4', frames=25, fps=Fraction(2), size=(72, 128))
    change(shop / CAPTIONS, lambda told: told.append({'start': 12, 'end': 12.4, 'text': 'dark'}))
    report = build_videos(options(shop, max_side_px=64, frames='png'))
    assert report.unseen == [f'{CAPTIONS}: [3].text (dark)']
    entry = Dataset(shop / 'data/shop').entry(0)
    assert (entry.original_size_px, entry.size_px) == ((128, 72), (64, 36))
    assert validate(shop / 'data/shop').errors == []


def test_changed_files_are_read_again(shop: Path) -> None:
    build_videos(options(shop))
    file = shop / 'data/shop/data_000000.json'
    before = file.stat().st_mtime_ns
    build_videos(options(shop), resume=True)
    assert file.stat().st_mtime_ns == before
    change(shop / QUESTIONS, lambda told: told[0].update(answer='a blue box'))
    build_videos(options(shop), resume=True)
    assert Dataset(shop / 'data/shop').entry(0).questions[0].answer == 'a blue box'


@pytest.mark.parametrize('file, edit, message', [
    (QUESTIONS, lambda t: t[1].update(answer='maybe'),
     r'shop.json: \[1\].answer: expected one of its options, yes, no, got "maybe"'),
    (QUESTIONS, lambda t: t[1].update(options=['a', 'a']), r'\[1\].options: expected at least'),
    (QUESTIONS, lambda t: t[0].update(time='five'), r'\[0\].time: expected a number'),
    (QUESTIONS, lambda t: t[0].update(time=-1), r'\[0\].time: expected a number of at least 0'),
    (QUESTIONS, lambda t: t[2].update(time=99), r'shop.json: \[2\].time: expected a time within '
                                                r'shop.mp4, 0 to 12.5 s, got 99'),
    (QUESTIONS, lambda t: t[0].pop('answer'), r'\[0\].answer: expected a value, got none'),
    (QUESTIONS, lambda t: t[0].update(anwser='x'), r'\[0\].anwser: expected one of the keys time'),
    (QUESTIONS, lambda t: t[0].update(evidence_s=[7]),
     r'\[0\].evidence_s\[0\]: expected a number from 0 to 5, got 7'),
    (QUESTIONS, lambda t: t[2].update(evidence_s=[8], reasoning='seen at 12 s'),
     r"shop.json: \[2\].reasoning: expected no time after its question, 11 s, got '12 s'"),
    (QUESTIONS, lambda t: t[0].update(reasoning='somebody puts the red box on the shelf'),
     r'data_000000.json: metadata.tww.questions\[0\].reasoning: .* leaks what comes later'),
    (QUESTIONS, lambda t: t[0].update(answer='a <|im_end|> box'), r'\[0\].answer: expected a text '
                                                                  r"without '<\|'"),
    (QUESTIONS, lambda t: t.clear(), 'shop.json: expected at least one question'),
    (CAPTIONS, lambda t: t[1].update(end=1), r'shop_captions.json: \[1\].end: expected a number of'
                                             r' at least 2, got 1'),
    (CAPTIONS, lambda t: t[1].update(text=''), r'\[1\].text: expected a text that is not empty'),
    (CAPTIONS, lambda t: t[1].update(text='later, at 9 s, it falls'),
     r"shop_captions.json: \[1\].text: expected no time after its segment's end, 5 s, got '9 s'"),
    (CAPTIONS, lambda t: t.pop(1), r'shop.json: \[0\].evidence_s: expected moments that some'),
])
def test_bad_files(shop: Path, file: str, edit: Callable, message: str) -> None:
    if file == CAPTIONS and 'evidence_s' in message:
        # Nothing is told of that moment.
        change(shop / QUESTIONS, lambda told: told[0].update(evidence_s=[4.5]))
    change(shop / file, edit)
    with pytest.raises(DatasetError, match=message):
        build_videos(options(shop))
    with pytest.raises(DatasetError, match=r'not complete|got nothing'):
        Dataset(shop / 'data/shop')


@pytest.mark.parametrize('name, text, message', [
    ('c.srt', '1\nsoon\nwords', r'c.srt: block 1: expected a line "00:00:01,000'),
    ('c.srt', '1\n00:00:05,000 --> 00:00:01,000\nwords', r'c.srt: block 1: expected an end after'),
    ('c.jsonl', '{"start": 0, "end": 1, "text": "a"}\n{"start"', r'c.jsonl line 2: line 1 column'),
    ('c.jsonl', '{"start": 0, "end": 1}', r'c.jsonl line 1: text: expected a value, got none'),
    ('c.json', '{}', r'c.json: expected an array, got {}'),
    ('c.txt', 'words', r'expected .json, .jsonl or .srt, got \'.txt\''),
    ('none.srt', None, r'none.srt: expected a file with captions, got No such file'),
])
def test_bad_captions(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_captions(tmp_path / name)


def test_wrong_use_of_the_command(shop: Path, capsys: pytest.CaptureFixture) -> None:
    base = ['data', 'video', '--out', 'out', '--video', 'shop.mp4', '--questions', QUESTIONS]
    for more, message in (
            ([], 'expected captions or a teacher'),
            (['--questions', QUESTIONS, '--captions', CAPTIONS], 'expected 1 files, one for each'),
            (['--captions', CAPTIONS, '--segment-s', '0'], 'segment-s: expected 0.1 to 600'),
            (['--teacher', 'localhost:8000'], 'expected http://host:port/v1'),
            (['--teacher', 'http://localhost:8000/v1'], 'expected the name of a model')):
        assert main([*base, *more]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count('\n') == 1
    with pytest.raises(ReplayError, match='no such video'):
        build_videos(VideoOptions(shop / 'out', (VideoSource(
            shop / 'no.mp4', shop / QUESTIONS, shop / CAPTIONS),)))


# The teacher

class Endpoint:
    """A real HTTP server with the chat-completions interface; records what it is asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        # What the next requests get instead: a status, a text to say, or seconds to sleep.
        self.trouble: list[Any] = []
        self.said: list[str] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == '/v1/chat/completions'
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                endpoint.headers.append(dict(self.headers))
                endpoint.requests.append(body)
                status, said = 200, f'thing {len(endpoint.said)} happens'
                trouble = endpoint.trouble.pop(0) if endpoint.trouble else None
                if isinstance(trouble, int):
                    status = trouble
                elif isinstance(trouble, float):
                    time.sleep(trouble)
                elif trouble is not None:
                    said = trouble
                if status == 200:
                    endpoint.said.append(said)
                    reply = {'choices': [{'message': {'role': 'assistant', 'content': said}}]}
                else:
                    reply = {'error': {'message': 'no such key'}}
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.handle_error = lambda *_: None
        self.url = f'http://127.0.0.1:{self.server.server_port}/v1'
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def teacher(self, cache: Path, **more: Any) -> Teacher:
        return Teacher(self.url, 'big', cache, **{'attempts': 3, 'backoff_s': 0.01, **more})


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.delenv('TWW_TEACHER_KEY', raising=False)
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join(10)


def texts(request: dict[str, Any]) -> str:
    user = request['messages'][1]['content']
    return '\n'.join(part['text'] for part in user if part['type'] == 'text')


def pictures_s(request: dict[str, Any]) -> list[float]:
    """When the pictures of a request were taken, by their grey level."""
    times = []
    for part in request['messages'][1]['content']:
        if part['type'] == 'image_url':
            kind, data = part['image_url']['url'].split(',', 1)
            assert kind == 'data:image/jpeg;base64'
            with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
                level = picture.convert('L').getpixel((40, 40))
            # write_video: 2 frames per second, 8 levels a frame.
            times.append(round((level - grey_level(0)) / 8) / 2)
    return times


def test_the_teacher_is_never_shown_what_comes_later(shop: Path, endpoint: Endpoint,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TWW_TEACHER_KEY', 'secret')
    change(shop / QUESTIONS, lambda told: told[0].pop('evidence_s'))
    assert main(['data', 'video', '--video', 'shop.mp4', '--questions', QUESTIONS, '--out', 'out',
                 '--teacher', endpoint.url, '--teacher-model', 'big']) == 0
    # Five segments, and two questions without a reasoning of their own.
    assert len(endpoint.requests) == 7
    assert all(told['Authorization'] == 'Bearer secret' for told in endpoint.headers)
    spans = [(0, 1, 2, 3), (4, 5), (6, 7, 8, 9), (10, 11), (12,)]
    asked = [('What lies on the counter?', 'a red box'), ('Is anybody there?', 'no'),
             ('Where is it now?', 'on the shelf')]
    for number, request in enumerate(endpoint.requests):
        assert request['model'] == 'big' and request['temperature'] == 0
        is_note = number < 5
        seen = 5 if number >= 5 else number
        known = set(range(seen if is_note else 2))
        assert tuple(pictures_s(request)) == (spans[number] if is_note else ())
        words = json.dumps(request['messages'])
        words = re.sub(r'base64,[^"]*', '', words)
        told = {k for k in range(7) if f'thing {k} happens' in words}
        assert told == known, number
        latest_s = spans[number][-1] if is_note else 5
        assert all(float(cited) <= latest_s for cited in re.findall(
            r'(\d+\.\d) s', texts(request))), texts(request)
        shown = {each for each in asked if each[0] in words or f'Answer: {each[1]}' in words}
        assert shown == (set() if is_note else {asked[number - 5]})
    entry = Dataset('out').entry(0)
    assert [segment.note for segment in entry.segments] == [
        f'thing {k} happens' for k in range(5)]
    assert [question.reasoning for question in entry.questions] == [
        'thing 5 happens', 'thing 6 happens', 'somebody puts the red box on the shelf']
    assert validate('out').errors == []
    assert b'secret' not in b''.join(path.read_bytes() for path in Path('out').rglob('*')
                                     if path.is_file())


def test_what_was_asked_is_not_asked_again(shop: Path, endpoint: Endpoint) -> None:
    cache = shop / 'replies'
    # Two notes, then the endpoint breaks for longer than there are attempts.
    endpoint.trouble = [None, None, 500, 503, 429]
    with pytest.raises(DatasetError, match=r'teacher http://127.*expected a chat completion, got '
                                           r'HTTP 429.*3 times; run the command again with --res'):
        build_videos(options(shop, captions=False), endpoint.teacher(cache))
    assert len(endpoint.said) == 2
    with pytest.raises(DatasetError, match='not complete'):
        Dataset(shop / 'data/shop')
    build_videos(options(shop, captions=False), endpoint.teacher(cache), resume=True)
    # Five notes and one reasoning: the others have evidence or a reasoning of their own.
    assert len(endpoint.said) == 7
    assert [json.dumps(request) for request in endpoint.requests[5:]] == list(dict.fromkeys(
        json.dumps(request) for request in endpoint.requests[5:]))
    assert endpoint.requests[2] == endpoint.requests[5]
    with pytest.raises(DatasetError, match='expected the same teacher as before'):
        build_videos(options(shop, captions=False), Teacher(endpoint.url, 'other', cache),
                     resume=True)


def test_a_teacher_that_is_slow_or_says_nonsense(shop: Path, endpoint: Endpoint) -> None:
    teacher = endpoint.teacher(shop / 'replies', timeout_s=0.3)
    endpoint.trouble = [1.0, '<think>at 99 s?</think> the red box\n stands at 2 s']
    assert teacher.note([], [], 3.0) == 'the red box stands at 2 s'
    # A reply from the future is sent back, with the reason.
    endpoint.trouble = ['it falls at 9 s', '', 'it falls']
    assert teacher.note([], [(1.0, 'a box')], 3.0) == 'it falls'
    assert 'You cite 9 s, but it is only 3.0 s now' in endpoint.requests[-1]['messages'][3][
        'content']
    endpoint.trouble = ['Nothing new.']
    assert teacher.note([], [(1.0, 'a bag')], 3.0) == 'nothing new'
    endpoint.trouble = ['at 9 s'] * 3
    with pytest.raises(DatasetError, match='cites no time after 3 s, got \'at 9 s\' three times'):
        teacher.reasoning([], 'What?', (), 'a box', 3.0)


@pytest.mark.parametrize('status, hint', [(401, 'set TWW_TEACHER_KEY'), (404, 'check --teacher')])
def test_a_refusal_is_not_repeated(tmp_path: Path, endpoint: Endpoint, status: int,
                                   hint: str) -> None:
    endpoint.trouble = [status]
    with pytest.raises(DatasetError, match=rf'HTTP {status} .*no such key.*; {hint}'):
        endpoint.teacher(tmp_path).note([], [], 1.0)
    assert len(endpoint.requests) == 1 and list(tmp_path.iterdir()) == []


def test_an_endpoint_that_is_not_there(tmp_path: Path, endpoint: Endpoint) -> None:
    teacher = endpoint.teacher(tmp_path)
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(DatasetError, match=r'got .*refused.* 3 times'):
        teacher.note([], [], 1.0)


@pytest.mark.parametrize('words, message', [
    ('words', 'expected JSON'), ('{"choices": []}', r'choices: expected one choice'),
    ('{"choices": [{"message": {"content": null}}]}', r'message.content: expected a text')])
def test_an_endpoint_of_another_kind(tmp_path: Path, endpoint: Endpoint, words: str,
                                     message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = endpoint.teacher(tmp_path)
    monkeypatch.setattr(teacher, '_post', lambda body: words)
    with pytest.raises(DatasetError, match=message):
        teacher.note([], [], 1.0)


def test_help_has_valid_examples(capsys: pytest.CaptureFixture) -> None:
    for command in ('tabletop', 'video', 'validate'):
        with pytest.raises(SystemExit):
            main(['data', command, '--help'])
        text = capsys.readouterr().out
        lines = text[text.index('examples:'):].splitlines()[1:]
        assert len(lines) == 2
        for line in lines:
            words = shlex.split(line)
            assert words[:3] == ['tww', 'data', command]
            build_parser().parse_args(words[1:])
