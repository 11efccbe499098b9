"""Simulated time over real DDS: it stands still, goes back before or behind the stamps, loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ros.manager import Manager
from ros.robot import FOUND_S, Robot, S

from tww_ros.errors import NothingSeenError
from tww_ros.node.client import TwwClient


@pytest.mark.timeout(120)
def test_clock_and_stamps(start_node: Callable) -> None:
    node = start_node({'use_sim_time': True, 'watch.sample_fps': 60.0, 'watch.segment_s': 1.0},
                      scripted_s=0.0)
    with TwwClient() as client, Manager() as manager, Robot(odometry=False) as robot:
        client.wait_until_ready(90.0)
        robot.wait_until_watched()
        watched = client.get_status().frames_watched

        def see(*seconds: float) -> None:
            nonlocal watched
            for second in seconds:
                robot.see(round(second * S))
            watched += len(seconds)
            client.wait_for(lambda s: s.frames_watched == watched and not s.frames_waiting,
                            FOUND_S)

        def clock(second: float) -> None:
            manager.set_clock(second)
            client.wait_for(lambda s: s.stamp.sec == int(second), FOUND_S)

        # Before the first /clock, and while it stands still: the node lives by steady timers.
        see(99.0)
        clock(100.0)
        see(100.0, 100.5)
        assert client.ask('now?').as_of_ns == 100.5 * S
        # Forward is a gap, no more.
        clock(500.0)
        see(500.0)
        assert client.get_status().epochs == 1

        # Back, and no image yet: what was seen lies in the future.
        clock(50.0)
        node.wait_for_line('the clock went back by 450.000 s to 50.000 s')
        client.wait_for(lambda s: s.epochs == 2, FOUND_S)
        with pytest.raises(NothingSeenError):
            client.ask('now?')
        see(50.0, 50.5)
        answer = client.ask('now?')
        epochs = {info.id: info.epoch for info in client.segments()}
        assert answer.as_of_ns == 50.5 * S
        assert {epochs[evidence.segment_id] for evidence in answer.evidence} == {1}
        # The stamps first, the clock behind them: one epoch for both.
        see(10.0)
        clock(10.0)
        see(10.5)
        assert client.get_status().epochs == 3
        assert client.ask('now?').as_of_ns == 10.5 * S
        # A loop of half a second, which would pass for disorder by its stamps.
        clock(11.0)
        see(11.0, 11.4)
        clock(10.9)
        client.wait_for(lambda s: s.epochs == 4, FOUND_S)
        see(11.0, 11.4)
        # Another clock for a running node: nothing breaks.
        assert not manager.set_parameter('use_sim_time', False)
        client.wait_for(lambda s: s.stamp.sec > 1_000_000_000, FOUND_S)
        see(12.0)
        status = client.get_status()
        assert status.frames_rejected == 0 and status.epochs == 4
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}
    assert 'internal error' not in node.output and 'Traceback' not in node.output
