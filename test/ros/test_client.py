"""TwwClient: blocking and with asyncio, streams, Enum choices, memory; across real processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from pathlib import Path

import pytest
from ros.robot import FOUND_S, Robot

from tww_ros.client import QueryStream, TwwClient, WatchStream, choice_texts, chosen
from tww_ros.errors import (
    AnswerTimeoutError,
    CancelledError,
    EngineClosedError,
    QuestionTooLongError,
    StoreError,
)
from tww_ros.node.waiting import Mailbox, wait, wait_async
from tww_ros.types import Answer

SETTINGS = {'watch.segment_s': 1.0, 'watch.idle_close_s': 0.3, 'watch.max_pixels': 4_096}


class Door(Enum):
    WIDE_OPEN = 1
    SHUT = 'closed'


# Without ROS


def test_members_of_an_enum_are_choices_and_come_back() -> None:
    assert choice_texts(Door) == ('wide open', 'closed')
    assert choice_texts(['a', 'b']) == ('a', 'b')
    for member, text in zip(Door, choice_texts(Door), strict=True):
        assert chosen(Answer(text, '', 'choice', 0, ()), Door) is member


def test_mailbox_keeps_order_whoever_reads() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert wait(mailbox.next(), 0.0, 'x') == 1

    async def read() -> list[int]:
        found = [await wait_async(mailbox.next(), 1.0, 'x')]
        with pytest.raises(AnswerTimeoutError, match=r'x: nothing came within 0\.01 s'):
            await wait_async(mailbox.next(), 0.01, 'x')
        threading.Timer(0.05, mailbox.put, (3,)).start()
        return [*found, await wait_async(mailbox.next(), FOUND_S, 'x')]

    assert asyncio.run(read()) == [2, 3]
    with pytest.raises(AnswerTimeoutError, match='x: nothing'):
        wait(mailbox.next(), 0.0, 'x')
    # Readers that gave up take nothing with them.
    mailbox.put(4)
    assert wait(mailbox.next(), 0.0, 'x') == 4


def test_errors_pass_through_both_kinds_of_waiting() -> None:
    failed: Future = Future()
    failed.set_exception(ValueError('no'))
    with pytest.raises(ValueError, match='no'):
        wait(failed, 1.0, 'x')
    with pytest.raises(ValueError, match='no'):
        asyncio.run(wait_async(failed, 1.0, 'x'))


# With a node


@pytest.mark.timeout(120)
def test_query_queue_batches_cancel_and_timeout(start_node: Callable) -> None:
    node = start_node({**SETTINGS, 'answer.max_new_tokens': 4_096}, scripted_s=0.002)
    with TwwClient() as client, Robot(odometry=False) as robot:
        client.wait_until_ready(90.0)
        robot.wait_until_watched()
        robot.drive(1, 3)
        client.wait_for(lambda status: status.segments >= 2, FOUND_S)
        first = client.query('a long one', session='a', max_new_tokens=400)
        second = client.query('and then?', session='a')
        third = client.query('and then?', session='a')
        pieces = list(first)
        text = first.result().text
        assert text == ('abcdefghi ' * 40).strip()
        # The full text is in the result; feedback may be late, and is sent in batches.
        assert text.startswith(''.join(pieces).strip()) and 2 <= len(pieces) <= 400 / 5
        assert first.result().finish_reason == 'length'
        assert second.result().text == third.result().text == 'You asked: and then?'
        # One session answers in order: they hear of their places in the line as it moves.
        for stream in (second, third):
            positions = stream.queue_positions
            assert positions == sorted(positions, reverse=True) and positions[-1] == 0
        assert second.queue_positions[0] == 1 and third.queue_positions[0] == 2

        late = client.query('a long one', session='b', max_new_tokens=4_000, timeout_s=0.5)
        with pytest.raises(AnswerTimeoutError, match=r'0\.5 s'):
            late.result()
        # What was written until then is told all the same.
        assert late.response().answer.startswith('abcdefghi ')
        assert late.response().error_code == late.response().TIMEOUT
        with pytest.raises(QuestionTooLongError):
            client.query('x' * 100_000).result()
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}


@pytest.mark.timeout(120)
def test_asyncio_choices_and_memory(start_node: Callable, tmp_path: Path) -> None:
    node = start_node(SETTINGS, scripted_s=0.0)

    async def use(client: TwwClient, robot: Robot) -> None:
        await client.wait_until_ready_async(90.0)
        robot.wait_until_watched()
        watching = await client.watch_async('Is it so? {no|yes}', timeout_s=60.0)
        assert isinstance(watching, WatchStream)
        robot.drive(1, 3)
        checks = []
        async for update in watching:
            checks.append(update.answer)
            robot.drive(2 + len(checks), 3 + len(checks))
        assert checks[-1] == 'yes' and (await watching.result_async()).holds
        texts = [f'question {number}' for number in range(50)]
        answers = await asyncio.gather(*(client.ask_async(text, session=text) for text in texts))
        assert [answer.text for answer in answers] == [f'You asked: {text}' for text in texts]
        doors = await asyncio.gather(*(
            client.choose_async(f'The door? {{{text}}}', Door, session=text)
            for text in choice_texts(Door)))
        assert doors == list(Door)

        stream = await client.query_async('what is there?')
        assert isinstance(stream, QueryStream)
        written = ''.join([text async for text in stream])
        assert 'You asked: what is there?'.startswith(written)
        assert (await stream.result_async()).text == 'You asked: what is there?'
        stream = await client.query_async('a long one', max_new_tokens=256, timeout_s=30.0)
        other = await client.watch_async('Is it so? {no}', timeout_s=30.0)
        assert await other.cancel_async()
        with pytest.raises(CancelledError):
            await other.result_async()
        await stream.result_async()
        # A caller that gives up disturbs nobody.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.ask_async('a long one', session='left'), 0.0)
        assert (await client.ask_async('still there?')).text == 'You asked: still there?'

        folder = await client.save_memory_async(str(tmp_path / 'memory'))
        segments = (await client.get_status_async()).segments
        assert folder == str(tmp_path / 'memory') and segments >= 3
        assert await client.clear_memory_async() == segments

    with TwwClient() as client, Robot(odometry=False) as robot:
        asyncio.run(use(client, robot))
        assert client.get_status().segments == 0 and client.segments() == []
        segments = client.load_memory(str(tmp_path / 'memory'))
        assert segments >= 3 and len(client.segments()) == segments
        with pytest.raises(StoreError, match='nowhere'):
            client.load_memory(str(tmp_path / 'nowhere'))
        assert client.choose('The door? {closed}', Door) is Door.SHUT
        answer = client.ask('The door? {wide open}', choices=Door)
        assert answer.text == 'wide open' and answer.choice_probabilities[0] > 0.9
        assert client.clear_memory(before_ns=1) == 0
        assert client.save_memory(str(tmp_path / 'again')) == str(tmp_path / 'again')
        assert node.stop() == {'code': 0, 'threads': ['MainThread']}
    with TwwClient('/nobody') as client:
        client.close()
        client.close()


def test_a_node_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tww_ros.node.client.DISCOVERY_S', 0.1)
    with TwwClient('/nobody') as client:
        for call in (client.ask, client.query, client.watch, client.save_memory):
            with pytest.raises(EngineClosedError, match='/nobody'):
                call('anything')

        async def call_all() -> None:
            for call in (client.ask_async, client.query_async, client.watch_async):
                with pytest.raises(EngineClosedError, match='/nobody'):
                    await call('anything')

        asyncio.run(call_all())
