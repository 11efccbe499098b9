"""What both demos share: children that end with the demo, waiting for the node, printable text.

In: command lines. Out: running processes whose output goes to a log. It knows nothing of what is
shown.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from tww_interfaces.msg import MemoryStatus
from tww_ros.errors import AnswerTimeoutError, ReplayError
from tww_ros.node.client import TwwClient

NODE_START_S = 120.0
STOP_S = 15.0
POLL_S = 1.0
LAST_WORDS = 4_000


@contextlib.contextmanager
def process(command: list[str], log: IO[str]) -> Iterator[subprocess.Popen]:
    """A child that is asked to end, and made to, whatever happens here."""
    child = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(STOP_S)


def program(module: str, parameters: Mapping[str, Any]) -> list[str]:
    """The command line of a program of this folder with ROS parameters."""
    arguments = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
    return [sys.executable, '-m', f'tww_ros.node.{module}', '--ros-args', *arguments]


def wait_until_ready(client: TwwClient, node: subprocess.Popen) -> MemoryStatus:
    """Until the model is loaded; a node that has ended is not waited for."""
    end_s = time.monotonic() + NODE_START_S
    while node.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(AnswerTimeoutError):
            return client.wait_until_ready(POLL_S)
    raise ReplayError(f'the node did not become ready (exit code {node.poll()}); see its log')


def one_line(text: str, limit: int = 60) -> str:
    """Short, on one line, with a dot for what no terminal shows."""
    shown = ''.join(c if c.isprintable() and c != '\ufffd' else '·' for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + '…'


def printable(text: str, limit: int = 60) -> str:
    """The same for rich: brackets are not markup."""
    return one_line(text, limit).replace('[', r'\[')


def last_words(log: IO[str]) -> str:
    """The end of a log, for rich."""
    log.seek(0)
    return log.read()[-LAST_WORDS:].replace('[', r'\[')
