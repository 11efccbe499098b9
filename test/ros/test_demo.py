"""The demo of the tabletop: its answer key against the camera's messages, and all of it, live."""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from reference.table import Table
from rich.console import Console

from tww_ros.cli import build_parser, main
from tww_ros.config import WatchConfig
from tww_ros.errors import ReplayError
from tww_ros.model import marks
from tww_ros.model.saving import save_checkpoint
from tww_ros.node import demo, video_demo
from tww_ros.node.answer_key import AnswerKey, same_knowledge
from tww_ros.node.camera_client import CameraClient
from tww_ros.node.demo import DemoOptions, show
from tww_ros.node.demo_report import Asked, DemoReport, score
from tww_ros.node.video_demo import VideoDemoOptions
from tww_ros.training.embedded import untrained
from tww_ros.types import Answer, Evidence, Frame, SegmentInfo
from tww_ros.video.segmentation import FrameIntake, PatchReady
from tww_ros.world.questions import KINDS, Asker
from tww_ros.world.table import TEST_SEEDS, Pace, simulate
from tww_ros.world.truth import truth_at

SEED = TEST_SEEDS.start + 11
START_NS = 1_700_000_000_123_456_789
BLANK = np.zeros((8, 8, 3), np.uint8)


class Stream:
    """A camera of 10 Hz and a node of 1 Hz, without either: stamps, truths, cuts."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.key = AnswerKey(simulate(seed, 300.0, Pace(gap_s=2.0)), sample_fps=1.0)
        self.truths: dict[int, dict] = {}
        self.cuts: list[tuple[int, ...]] = []
        self.seconds = 0.0
        self._intake = FrameIntake(WatchConfig(sample_fps=1.0, segment_s=1.5), 2)
        self._frames: list[int] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(10 * seconds)):
            self.seconds += 0.1
            t_s = round(self.seconds + self.rng.uniform(-0.02, 0.02), 3)
            stamp_ns = START_NS + round(t_s * 1_000) * 1_000_000
            self.key.publish(stamp_ns, t_s)
            # As they travel: through JSON.
            self.truths[stamp_ns] = json.loads(json.dumps(
                truth_at(self.key.episode, t_s).to_json()))
            self._take(self._intake.add(Frame(stamp_ns, 'camera', BLANK)).events)

    def ask(self) -> None:
        """What a question does: it closes the open segment."""
        self._take(self._intake.close('question'))

    @property
    def segments(self) -> list[SegmentInfo]:
        return [SegmentInfo(number, number, 'camera', 0, cut[0], cut[-1], len(cut), 9, 1, 'device',
                            'time') for number, cut in enumerate(self.cuts)]

    def _take(self, events: list) -> None:
        for event in events:
            if isinstance(event, PatchReady):
                self._frames += [frame.stamp_ns for frame in event.patch.frames]
            else:
                self.cuts.append(tuple(self._frames))
                self._frames = []


def test_key_agrees_with_the_messages_of_the_camera() -> None:
    """Every kind of question, at any moment; the last segment is still open when it is asked."""
    asked: Counter[str] = Counter()
    for seed in range(SEED, SEED + 12):
        stream = Stream(seed)
        stream.run(2.5)
        while stream.seconds < 110:
            stream.run(stream.rng.uniform(0.3, 9.0))
            before = stream.segments
            watched_ns = stream.key.watched_ns(before[0].start_ns)[-1]
            chronicle = stream.key.chronicle(before, watched_ns)
            stream.ask()
            assert stream.cuts[-1][-1] == watched_ns
            after = stream.key.chronicle(stream.segments, watched_ns)
            assert same_knowledge(chronicle, after) == chronicle.settled
            assert len(after.notes) == len(stream.cuts)
            if not chronicle.settled:
                continue
            table = Table(stream.truths, stream.cuts)
            asker = Asker(chronicle, stream.rng)
            for kind in KINDS:
                made = asker.make(kind)
                if made is None:
                    continue
                asked[kind] += 1
                assert table.answer(made.text) == made.answer, made
                if made.subject is not None:
                    more = asker.follow_up(made.subject)
                    assert table.answer(more.text, made.subject.name) == more.answer, more
    assert set(asked) == set(KINDS) and sum(asked.values()) > 1_000


def test_key_notices_what_happens_on_the_way() -> None:
    stream = Stream(SEED)
    stream.run(3.0)
    event = next(event for event in stream.key.episode.events if event.start_s > 4.5)
    stream.run(event.start_s - 0.5 - stream.seconds)
    first_ns = stream.segments[0].start_ns
    asked = stream.key.chronicle(stream.segments, stream.key.watched_ns(first_ns)[-1])
    verdicts = []
    while stream.seconds < event.end_s + 1.2:
        stream.run(0.1)
        answered = stream.key.chronicle(stream.segments, stream.key.watched_ns(first_ns)[-1])
        verdicts.append(same_knowledge(asked, answered))
    # The same for a while, then a hand is in the picture, then the table is another one.
    assert verdicts == sorted(verdicts, reverse=True)
    assert verdicts[0] and not verdicts[-1]


def test_key_refuses_what_it_cannot_know() -> None:
    stream = Stream(SEED)
    stream.run(5.0)
    with pytest.raises(ReplayError, match='another camera'):
        stream.key.world_s(START_NS + 1)
    long = replace(stream.segments[0], frames=3)
    with pytest.raises(ReplayError, match='at most 2 frames, got 3'):
        stream.key.chronicle([long], stream.key.newest_ns)


def test_longest_gap_counts_the_ends() -> None:
    stream = Stream(SEED)
    stream.run(10.0)
    stream.ask()
    whole = stream.segments
    assert 0.9 < stream.key.longest_gap_s(whole) < 1.1
    assert 4.9 < stream.key.longest_gap_s(whole[:2] + whole[4:]) < 5.1
    assert 1.8 < stream.key.longest_gap_s(whole[1:]) < 2.2
    assert 6.0 < stream.key.longest_gap_s(whole[:2]) < 7.2


def report_of(texts: list[str | None], judged: bool = True, **changes: object) -> DemoReport:
    """A report about a stream of ten seconds whose right answer is always 'red ball'."""
    stream = Stream(SEED)
    stream.run(10.0)
    stream.ask()
    question = replace(Asker(stream.key.chronicle(stream.segments, stream.cuts[-1][-1]),
                             random.Random(0)).ask(), answer='red ball')
    asked = []
    for text in texts:
        seen = [Evidence(n, 'camera', *stream.cuts[n], 0.4 - n / 10, 'device') for n in range(3)]
        answer = None if text is None else Answer(text, 'a reason', 'stop', stream.cuts[-1][-1],
                                                  tuple(seen), first_token_s=0.1)
        asked.append(Asked(question, answer, judged))
    status = SimpleNamespace(frames_received=100, frames_watched=10, frames_skipped=90,
                             frames_dropped=0, segments=5, notes_written=5, memory_tokens=70,
                             memory_bytes=1_000)
    fields = {'asked': asked, 'segments': stream.segments, 'key': stream.key, 'status': status,
              'arrived': 7, 'rate_hz': 10.0, 'size_px': 96}
    return DemoReport(**{**fields, **changes})


@pytest.mark.parametrize('texts, counts, fault', [
    (['red ball', 'Red ball.', 'blue ball'], (2, 3), ''),
    (['red ball', 'blue ball'], (1, 2), ''),
    (['red ball', 'blue ball', 'a red ball'], (1, 3), '1 of 3 answers are right'),
    (['red ball', 'red ball', None], (2, 3), '1 of 3 questions got no answer'),
    ([], (0, 0), 'no question was asked'),
])
def test_score_and_faults(texts: list[str | None], counts: tuple[int, int], fault: str) -> None:
    report = report_of(texts)
    assert score(report.asked) == counts
    assert [text for text in report.faults if fault not in text] == []
    assert bool(report.faults) == bool(fault)
    assert f'{counts[0]} of {counts[1]} right' in dict(report.summary)['score']


def test_faults_of_the_stream() -> None:
    fine = report_of(['red ball'])
    assert fine.faults == []
    assert 'no frame arrived' in report_of(['red ball'], arrived=0).faults[0]
    hole = report_of(['red ball'], segments=fine.segments[:2])
    assert 'nothing was watched for' in hole.faults[0]
    dropped = SimpleNamespace(**{**vars(fine.status), 'frames_dropped': 3})
    assert '3 frames were dropped' in report_of(['red ball'], status=dropped).faults[0]


def test_what_changed_meanwhile_is_not_judged() -> None:
    report = report_of(['red ball', 'blue ball'], judged=False)
    assert score(report.asked) == (0, 0) and report.faults == []
    assert '2 not judged' in dict(report.summary)['score']
    report.sheet()


@pytest.mark.parametrize('options, part', [
    (DemoOptions(seconds=5.0), 'at least 11 seconds, got 5'),
    (DemoOptions(seed=7), 'worlds that nobody trains on, got 7'),
    (DemoOptions(sheet=Path('/nowhere/x.png')), 'there is no folder /nowhere'),
])
def test_options_that_cannot_be(options: DemoOptions, part: str) -> None:
    with pytest.raises(ReplayError, match=part):
        show(options, Console(file=io.StringIO()))


@pytest.mark.parametrize('shipped', [True, False])
@pytest.mark.parametrize('arguments, expected', [
    ('--model embedded --seconds 30 --quantization int8',
     DemoOptions(seconds=30.0, quantization='int8')),
    ('--seed 1000000042 --seconds 40 --sheet a.png',
     DemoOptions(seed=1_000_000_042, seconds=40.0, sheet=Path('a.png'))),
    ('--model tiny-random', VideoDemoOptions(video=None, model='tiny-random', seconds=12.0)),
    ('--video a.mp4', VideoDemoOptions(video=Path('a.mp4'), model='tiny-random')),
    ('--video a.mp4 --model dir --quantization nf4 --seconds 5',
     VideoDemoOptions(video=Path('a.mp4'), model='dir', quantization='nf4', seconds=5.0)),
])
def test_which_demo_a_command_line_means(
        arguments: str, expected: DemoOptions | VideoDemoOptions, shipped: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(marks, 'EMBEDDED', tmp_path)
    if shipped:
        (tmp_path / 'config.json').touch()
    monkeypatch.setattr(demo, 'run_demo', lambda options: ran.append(options) or 0)
    monkeypatch.setattr(video_demo, 'run_video_demo', lambda options: ran.append(options) or 0)
    assert main(['demo', *arguments.split()]) == 0
    assert ran == [expected]


@pytest.mark.parametrize('shipped, expected', [
    (True, DemoOptions()),
    # A copy without the embedded model shows that frames flow.
    (False, VideoDemoOptions(video=None, model='tiny-random')),
])
def test_which_demo_it_is_by_default(shipped: bool, expected: DemoOptions | VideoDemoOptions,
                                     tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_which_demo_a_command_line_means('', expected, shipped, tmp_path, monkeypatch)


def test_a_seed_is_for_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['demo', '--seed', '1000000042', '--video', 'a.mp4']) == 2
    assert '--seed with the simulated table only' in capsys.readouterr().err


def test_examples_in_help_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['demo', '--help'])
    text = capsys.readouterr().out
    examples = text[text.index('examples:'):].splitlines()[1:]
    assert len(examples) == 4
    for line in examples:
        words = line.split()
        assert words.pop(0) == 'tww'
        build_parser().parse_args(words)


@pytest.mark.timeout(300)
def test_the_demo_through_real_processes(ros_env: dict[str, str], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s of the world. What is checked is what is shown, not how well the model answers: it is
    the embedded model before training."""
    save_checkpoint(untrained(), tmp_path / 'model')
    monkeypatch.setattr(demo, 'MODEL', str(tmp_path / 'model'))
    out, sheet = io.StringIO(), tmp_path / 'demo.png'
    console = Console(file=out, width=300, soft_wrap=True, highlight=False)
    with CameraClient() as hears:
        report = show(DemoOptions(seed=SEED, seconds=20.0, sheet=sheet), console)
        truths = {truth['stamp_ns']: truth for truth in hears.truths()}
    text = out.getvalue()

    # All that was asked was answered, about what had been seen, with evidence from memory.
    assert 2 <= len(report.asked) <= 6
    assert all(asked.answer is not None for asked in report.asked)
    assert [fault for fault in report.faults if 'right' not in fault] == []
    assert score(report.asked)[1] > 0
    known = {segment.id: (segment.start_ns, segment.end_ns) for segment in report.segments}
    for asked in report.asked:
        assert asked.answer.as_of_ns in {end_ns for _, end_ns in known.values()}
        assert asked.answer.evidence
        assert all(known[e.segment_id] == (e.start_ns, e.end_ns) for e in asked.answer.evidence)

    # The truth that was shown is what the camera's own messages say.
    cuts = [(segment.start_ns, segment.end_ns)[:segment.frames] for segment in report.segments]
    assert {truth['seed'] for truth in truths.values()} == {SEED}
    subject = None
    for asked in report.asked:
        question, as_of_ns = asked.question, asked.answer.as_of_ns
        if asked.judged:
            table = Table(truths, [cut for cut in cuts if cut[-1] <= as_of_ns])
            it = subject.name if subject else ''
            assert table.answer(question.text, it) == question.answer, question
        assert not question.choices or question.answer in question.choices
        subject = question.subject

    # Printed as it happened.
    lines = text.splitlines()
    said = Counter(found.group(1) for line in lines
                   if (found := re.match(r'\[ *\d+\.\d s\]  (\w+)', line)))
    assert said == {'note': report.status.notes_written, 'asked': len(report.asked),
                    'answer': len(report.asked)}
    answers = [line for line in lines if re.match(r'\[ *\d+\.\d s\]  answer', line)]
    for line, asked in zip(answers, report.asked, strict=True):
        assert f'truth: {asked.question.answer}' in line
        mark = '?' if not asked.judged else '✓' if (
            asked.answer.text.strip('. ').lower() == asked.question.answer) else '✗'
        assert f'answer  {mark} ' in line
    right, judged = score(report.asked)
    assert f'{right} of {judged} right so far' in text and f'{right} of {judged} right\n' in text
    assert f'world    {SEED}' in text

    # Watching went on: frames were received all the time, about one a second was read.
    status = report.status
    assert report.key.frames == len(truths) > 100
    assert 0.9 * len(truths) <= status.frames_received <= len(truths)
    assert status.frames_watched == sum(segment.frames for segment in report.segments) >= 10
    assert status.answers_done == len(report.asked) and status.answers_failed == 0
    assert status.notes_written == status.segments == len(report.segments)
    assert report.arrived > 0

    with Image.open(sheet) as picture:
        assert picture.format == 'PNG' and picture.width == 1324
        assert picture.height > 190 * len(report.asked)
        pixels = np.asarray(picture.convert('RGB'))
    # In each row there is a photograph where one should be.
    colours = [len(np.unique(band[:, 60:200].reshape(-1, 3), axis=0))
               for band in np.array_split(pixels[120:], len(report.asked))]
    assert min(colours) > 1_000
