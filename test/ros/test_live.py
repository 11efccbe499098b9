"""The promise of the node, across real processes and real DDS: it watches while it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tww_interfaces.msg import MemoryStatus
from tww_ros.errors import CancelledError
from tww_ros.node.bag_publisher import PublishReport, publish_bag
from tww_ros.node.client import TwwClient
from tww_ros.replay.bag import read_bag
from tww_ros.types import Answer

FRAMES = 100
LONG = 96


def sampled_while(client: TwwClient, future: Future) -> list[MemoryStatus]:
    """Every status that arrives until the future is done."""
    seen = [client.status()]
    while not future.done():
        before = seen[-1]
        seen.append(client.wait_for(lambda status, old=before: status is not old, 10.0))
    return seen


@pytest.mark.timeout(240)
def test_watches_while_it_answers(start_node: Callable, bikes_bag: Path) -> None:
    """Real video at 10 fps, three questions meanwhile: frames go on entering memory, none lost."""
    # Small images and short notes, so that a busy machine keeps up with ten frames per second.
    node = start_node({'watch.sample_fps': 10.0, 'watch.segment_s': 1.0,
                       'watch.max_pixels': 32_768, 'note.max_new_tokens': 8}, endless=True)
    bag = read_bag(bikes_bag)
    stamps = {message.t_ns for message in bag}
    with TwwClient() as client, ThreadPoolExecutor() as pool:
        client.wait_until_ready(90.0)
        replay: Future[PublishReport] = pool.submit(publish_bag, bag, rate=1.0)
        client.wait_for(lambda status: status.frames_watched >= 10, 60.0)
        answers: list[Answer] = []
        watched_meanwhile = []
        for number in range(3):
            asked = client.status()
            answer = pool.submit(client.ask, f'question {number}', session=f's{number}',
                                 max_new_tokens=LONG)
            during = sampled_while(client, answer)
            answers.append(answer.result(60.0))
            if not replay.done():
                # Strictly inside: neither the first nor the last status counts.
                watched_meanwhile.append(during[-2].frames_watched - during[1].frames_watched)
            assert asked.newest.sec * 10**9 + asked.newest.nanosec <= answers[-1].as_of_ns
        assert watched_meanwhile and min(watched_meanwhile) >= 2
        assert len({answer.as_of_ns for answer in answers}) >= 2
        report = replay.result(60.0)
        assert report.images == FRAMES and report.topics == ('/image',)
        # Every segment is closed and noted, the last one too, because the camera is silent now.
        status = client.wait_for(lambda status: (
            status.frames_watched == FRAMES and status.notes_written == status.segments), 60.0)
        assert status.images_received == status.frames_received == FRAMES
        assert status.frames_dropped == status.frames_skipped == status.frames_rejected == 0
        assert status.answers_done == 3 and status.sessions == 3 and not status.last_error

        segments = {info.id: info for info in client.segments()}
        assert sum(info.frames for info in segments.values()) == FRAMES
        for answer in answers:
            assert answer.as_of_ns in stamps
            assert answer.completion_tokens == LONG and answer.finish_reason == 'length'
            assert answer.reused_tokens > 0
            scores = [evidence.score for evidence in answer.evidence]
            assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1 + 1e-5
            for evidence in answer.evidence:
                info = segments[evidence.segment_id]
                assert (evidence.start_ns, evidence.end_ns) == (info.start_ns, info.end_ns)
                assert {evidence.start_ns, evidence.end_ns} <= stamps
                assert evidence.end_ns <= answer.as_of_ns and evidence.camera == 'camera'
        # Notes are latched, so a client sees those that were written before it came, too.
        with TwwClient() as late:
            late.status()
            notes = {note.segment_id for note in client.notes()}
            assert notes == set(segments)
            while {note.segment_id for note in late.notes()} != notes:
                threading.Event().wait(0.05)
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}


@pytest.mark.timeout(180)
def test_cancelled_action_stops_within_a_few_steps(start_node: Callable, bikes_bag: Path) -> None:
    node = start_node({'answer.max_new_tokens': 8_192, 'note.enabled': False}, scripted_s=0.01)
    with TwwClient() as client:
        client.wait_until_ready(90.0)
        publish_bag(list(read_bag(bikes_bag))[:10], rate=20.0)
        idle = client.wait_for(
            lambda status: status.frames_received == 10 and not status.frames_waiting, 30.0)
        stream = client.query('a long one', max_new_tokens=8_000)
        received = ''
        for delta in stream:
            received += delta
            if len(received) >= 20:
                assert stream.cancel()
                break
        result = stream.response(20.0)
        assert result.error_code == result.CANCELLED
        received += ''.join(stream)
        assert list(stream) == []
        with pytest.raises(CancelledError):
            stream.result()
        assert result.answer.startswith(received) and result.answer.startswith('abcdefghi ')
        ended = client.wait_for(lambda status: status.answers_cancelled == 1
                                and not status.answers_active, 20.0)
        # One letter a step: the answer was cut off, and the model stopped with it.
        assert len(result.answer) < 8_000
        assert ended.steps - idle.steps <= len(result.answer) + 10
        assert client.ask('hello').text == 'You asked: hello'
        still = client.wait_for(lambda status: status.answers_done == 1, 20.0)
        assert still.answers_failed == 0
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}


@pytest.mark.timeout(180)
def test_clients_at_once_and_a_node_that_listens(start_node: Callable, bikes_bag: Path) -> None:
    """Two clients, ask and query mixed: each gets its own answer; parameters answer meanwhile."""
    start_node({}, scripted_s=0.05)
    with TwwClient() as one, TwwClient() as two, ThreadPoolExecutor() as pool:
        one.wait_until_ready(90.0)
        publish_bag(list(read_bag(bikes_bag))[:10], rate=20.0)
        questions = [f'what does client {number} want to know?' for number in range(4)]
        asked = [pool.submit((one, two)[n % 2].ask, text, session=f's{n}')
                 for n, text in enumerate(questions)]
        streams = [client.query(text, session=text, max_new_tokens=128)
                   for client, text in ((one, 'stream one'), (two, 'stream two'))]
        one.wait_for(lambda status: status.answers_active >= 1
                     and status.answers_active + status.answers_waiting >= 5, 30.0)
        # They are under way, and the node answers everything else.
        assert one.segments()
        one.enable_ingest(False)
        assert two.wait_for(lambda status: not status.ingest_enabled, 10.0).answers_done < 6
        for text, future in zip(questions, asked, strict=True):
            assert future.result(60.0).text == f'You asked: {text}'
        for text, stream in zip(('stream one', 'stream two'), streams, strict=True):
            pieces = list(stream)
            assert stream.result().text == f'You asked: {text}' == ''.join(pieces)
            assert len(pieces) >= 2
        assert two.wait_for(lambda status: status.answers_done == 6, 10.0).answers_failed == 0
        one.close_session('s0')
        assert one.wait_for(lambda status: status.sessions == 5, 10.0)


@pytest.mark.timeout(180)
def test_choices_and_rounds(start_node: Callable, bikes_bag: Path) -> None:
    start_node({'watch.sample_fps': 10.0})
    with TwwClient() as client:
        client.wait_until_ready(90.0)
        publish_bag(list(read_bag(bikes_bag))[:20], rate=0.0)
        answer = client.ask('which?', choices=('red', 'green', 'blue'), session='a')
        assert answer.text in ('red', 'green', 'blue') and answer.finish_reason == 'choice'
        assert sum(answer.choice_probabilities) == pytest.approx(1.0, abs=1e-5)
        best = max(range(3), key=answer.choice_probabilities.__getitem__)
        assert answer.text == ('red', 'green', 'blue')[best]
        # Asked with nothing under way: it sees exactly what was published.
        assert answer.as_of_ns == list(read_bag(bikes_bag))[19].t_ns
        second = client.ask('and then?', session='a', max_new_tokens=4)
        assert second.reused_tokens > answer.reused_tokens
        assert client.status().sessions == 1
