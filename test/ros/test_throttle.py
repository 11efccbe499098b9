"""A complaint is made once, then at most every period, with a count."""

from tww_ros.node.throttle import TEXTS_KEPT, Throttle


def test_says_once_then_counts() -> None:
    now_s = 0.0
    throttle = Throttle(10.0, clock=lambda: now_s)
    assert throttle.admit('a') == 'a'
    assert throttle.admit('a') == '' == throttle.admit('a')
    assert throttle.admit('b') == 'b'
    now_s = 10.0
    assert throttle.admit('a') == 'a (and 2 more times)'
    assert throttle.admit('a') == ''
    now_s = 20.0
    assert throttle.admit('b') == 'b'


def test_numbers_do_not_make_it_another_complaint() -> None:
    throttle = Throttle(10.0, clock=lambda: 0.0)
    assert throttle.admit('/a: 17 bytes are no JPEG') == '/a: 17 bytes are no JPEG'
    assert throttle.admit('/a: 2384 bytes are no JPEG') == ''
    assert throttle.admit('/a2: 17 bytes are no JPEG') != ''
    assert throttle.admit('/a3: 17 bytes are no JPEG') != ''


def test_memory_is_bounded() -> None:
    throttle = Throttle(10.0, clock=lambda: 0.0)
    for number in range(10 * TEXTS_KEPT):
        assert throttle.admit('x' * number) == 'x' * number
    assert len(throttle._said) == TEXTS_KEPT
