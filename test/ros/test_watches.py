"""The Watch action over real DDS: word of each check, one result, an error code for each end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ros.robot import FOUND_S, Robot, S

from tww_interfaces.action import Watch
from tww_ros.errors import AnswerTimeoutError, BusyError, CancelledError, EngineClosedError
from tww_ros.node.client import TwwClient
from tww_ros.node.streams import WatchStream

# Segments of two frames; the last one is closed soon after its camera falls silent.
SETTINGS = {'watch.segment_s': 1.0, 'watch.idle_close_s': 0.3, 'watch.max_pixels': 4_096,
            'pose_topic': 'odom'}


def raw(client: TwwClient, **fields: object) -> Watch.Result:
    """The result message of a goal that the client's own records would refuse."""
    client._find(client._watch)
    stream = WatchStream(client._spinning, client._watch,
                         Watch.Goal(**{'question': 'now?', **fields}), FOUND_S)
    stream.start()
    return stream.response()


@pytest.mark.timeout(120)
def test_each_check_is_told_until_it_holds(start_node: Callable) -> None:
    node = start_node(SETTINGS, scripted_s=0.0)
    with TwwClient() as client, Robot() as robot:
        client.wait_until_ready(90.0)
        robot.wait_until_watched()
        gone = client.watch('Is the cup gone? {no|no|yes|no|yes|yes}', confirmations=2,
                            timeout_s=60.0)
        where = client.watch('Where is it?{b|a}', choices=('a', 'b'), expected='b',
                             timeout_s=60.0)
        never = client.watch('Is it blue? {no}', timeout_s=0.0)
        client.wait_for(lambda status: status.watches == 3, FOUND_S)
        checks = iter(gone)
        found = []
        for number in range(1, 7):
            # One segment at a time, so that no two share a check; silence closes it.
            robot.drive(number, number + 1)
            found.append(next(checks))
        assert [update.answer for update in found] == ['no', 'no', 'yes', 'no', 'yes', 'yes']
        assert [update.agreeing for update in found] == [0, 0, 1, 0, 1, 2]
        assert [update.checks for update in found] == [1, 2, 3, 4, 5, 6]
        result = gone.result()
        assert list(checks) == [] == list(gone)
        assert (result.answer, result.checks, result.agreeing) == ('yes', 6, 2) and result.holds
        assert result.stamp_ns == found[-1].stamp_ns and result.probability > 0.9
        assert [update.stamp_ns for update in found] == sorted({u.stamp_ns for u in found})
        # One metre a second: evidence says where the robot was at the end of each segment.
        assert len(result.evidence) >= 4
        for evidence in result.evidence:
            assert evidence.pose.frame_id == 'map'
            assert evidence.pose.position_m[0] == pytest.approx(evidence.end_ns / S, abs=0.51)
        assert where.result().checks == 1 and where.result().answer == 'b'
        status = client.wait_for(lambda status: status.watches == 1, FOUND_S)
        # Checks are no answers and leave no sessions.
        assert status.answers_done == status.sessions == 0 and not status.last_error
        # The word of the sixth check may still be under way.
        assert next(update for update in never if update.checks >= 6) == never.last
        assert never.cancel() and not never.cancel()
        assert never.response().error_code == Watch.Result.CANCELLED
        assert never.response().checks == never.last.checks
        with pytest.raises(CancelledError):
            never.result()
        left = client.watch('Is it blue? {no}', timeout_s=0.0)
        client.wait_for(lambda status: status.watches == 1, FOUND_S)
        assert node.stop() == {'code': 0, 'threads': ['MainThread']}
        with pytest.raises(EngineClosedError):
            left.result(FOUND_S)


@pytest.mark.timeout(120)
def test_every_end_has_its_code(start_node: Callable) -> None:
    node = start_node({**SETTINGS, 'answer.max_watches': 1, 'answer.max_question_tokens': 64,
                       'autostart': False}, scripted_s=0.0)
    codes = Watch.Result
    with TwwClient() as client, Robot() as robot:
        assert raw(client).error_code == codes.NOT_ACTIVE
        for transition in ('configure', 'activate'):
            change_state(client, transition)
        client.wait_until_ready(90.0)
        for fields, code in (
                ({'question': ' '}, codes.EMPTY_QUESTION),
                ({'choices': ['yes']}, codes.INVALID_CHOICES),
                ({'expected': 'maybe'}, codes.INVALID_CHOICES),
                ({'threshold': 2.0}, codes.INVALID_REQUEST),
                ({'cameras': ['rear']}, codes.UNKNOWN_CAMERA),
                ({'question': 'x' * 100}, codes.QUESTION_TOO_LONG)):
            response = raw(client, **fields)
            assert (response.error_code, response.checks) == (code, 0), fields
            assert response.error_msg
        first = client.watch('Is it so? {no}', timeout_s=1.0)
        with pytest.raises(BusyError, match='max_watches'):
            client.watch('And this?').result()
        robot.wait_until_watched()
        robot.drive(1, 4)
        with pytest.raises(AnswerTimeoutError, match='did not hold within 1 s'):
            first.result()
        response = first.response()
        # What was found last is told all the same.
        assert response.error_code == codes.TIMEOUT and response.answer == 'no'
        assert response.checks >= 1 and response.stamp.sec >= 0
        stays = client.watch('Is it so? {no}', timeout_s=60.0)
        change_state(client, 'deactivate')
        assert stays.response(FOUND_S).error_code == codes.NOT_ACTIVE
        assert raw(client).error_code == codes.NOT_ACTIVE
    assert node.stop() == {'code': 0, 'threads': ['MainThread']}


def change_state(client: TwwClient, label: str) -> None:
    from lifecycle_msgs.srv import ChangeState
    service = client._spinning.node.create_client(ChangeState, '/tww/change_state')
    request = ChangeState.Request()
    request.transition.label = label
    assert client._call(service, request, 60.0).success
