"""The node as the tests start it: `tww_node`, and at its end one line of JSON about what is left.

    python node_program.py [--scripted DELAY_S | --endless] [--ros-args ...]

--scripted: a ScriptedModel in place of a checkpoint. It answers `You asked: <question>`, written
one letter a step, or ten thousand letters when the question holds the word "long".
--endless: the checkpoint as it is, except that no token ends an answer; with random weights any
answer may end at any token, and a test of overlap needs long ones.
"""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from typing import Any

from tww_ros.node.main import main


def say(prompt: str) -> str:
    if 'long' in prompt:
        return 'abcdefghi ' * 1_000
    return f'You asked: {prompt.strip()}'


def scripted(delay_s: float, node: Any) -> Any:
    from tww_ros.model.scripted import ScriptedModel
    return ScriptedModel(answer=say, note='a note', step_delay_s=delay_s)


def endless(node: Any) -> Any:
    from tww_ros.node.node import load_checkpoint
    model = load_checkpoint(node)
    model.answer_ends = frozenset()
    return model


if __name__ == '__main__':
    arguments, load = sys.argv, None
    if arguments[1:2] == ['--scripted']:
        load = partial(scripted, float(arguments[2]))
        arguments = [arguments[0], *arguments[3:]]
    elif arguments[1:2] == ['--endless']:
        load, arguments = endless, [arguments[0], *arguments[2:]]
    code = main(arguments, load)
    print(json.dumps({'code': code, 'threads': [t.name for t in threading.enumerate()]}))
    sys.exit(code)
