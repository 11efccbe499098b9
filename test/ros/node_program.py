"""The node as the tests start it: `tww_node`, and at its end one line of JSON about what is left.

    python node_program.py [--scripted DELAY_S | --endless] [--ros-args ...]

--scripted: a ScriptedModel in place of a checkpoint. It answers `You asked: <question>`, written
one letter a step, or ten thousand letters when the question holds the word "long". A question
that holds "{no|no|yes}" is answered so in turn, and yes from then on.
The model "slow" takes a while to load, and "broken" cannot be loaded.
--endless: the checkpoint as it is, except that no token ends an answer; with random weights any
answer may end at any token, and a test of overlap needs long ones.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

from tww_ros.errors import ModelError
from tww_ros.node.main import main

SLOW_S = 3.0

ASKED: Counter[str] = Counter()


def say(prompt: str) -> str:
    turns = re.search(r'\{(.*)\}', prompt)
    if turns is not None:
        words = turns[1].split('|')
        ASKED[prompt] += 1
        return words[min(ASKED[prompt], len(words)) - 1]
    if 'long' in prompt:
        return 'abcdefghi ' * 1_000
    return f'You asked: {prompt.strip()}'


def scripted(delay_s: float, node: Any) -> Any:
    if node.model == 'slow':
        time.sleep(SLOW_S)
    elif node.model == 'broken':
        raise ModelError('broken: expected a checkpoint that can be loaded')
    from tww_ros.model.scripted import ScriptedModel
    return ScriptedModel(answer=say, note='a note', step_delay_s=delay_s)


def endless(node: Any) -> Any:
    from tww_ros.node.loading import load_checkpoint
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
