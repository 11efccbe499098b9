"""`tww test`: check a model's answers about a recorded bag, the same way every time.

In: a bag, a file of questions, a model. Out: a table on stdout; JUnit XML and JSON on request.
Exit codes: 0 all passed, 1 an answer is not as expected, 2 it could not be done as asked. Imports
are inside the functions: `tww --help` needs no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tww_ros.errors import ReplayError


def register(commands: Any, add: Any,
             parse_settings: Callable[[Sequence[str]], dict[str, Any]]) -> None:
    """Declare `tww test`; `add` is the CLI's helper that declares a command."""
    test = add(commands, 'test', _test, 'ask about a bag, and check the answers', """
        tww test door_bag door.yaml --model embedded
        tww test door_bag door.yaml --model ~/Qwen3-VL-2B --quantization nf4 --junit door.xml
        tww test door_bag door.yaml --set watch.sample_fps=1.0 --json door.json""")
    test.add_argument('bag', type=Path, help='a rosbag2 folder, or one .mcap or .db3 file')
    test.add_argument('questions', type=Path, metavar='QUESTIONS.yaml',
                      help='what to ask when, and what to expect (docs/bag_tests.md)')
    test.add_argument('--model', help='as for tww ask; wins over the file')
    test.add_argument('--quantization', choices=('none', 'int8', 'nf4'),
                      help='wins over the file')
    test.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, …')
    test.add_argument('--dtype', default='auto',
                      choices=('auto', 'float32', 'bfloat16', 'float16'))
    test.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                      help='an engine setting (see `tww params`); again for more')
    test.add_argument('--timeout', type=float, default=600.0, metavar='SECONDS',
                      help='longest wait for memory or for one answer (default: %(default)g)')
    test.add_argument('--junit', type=Path, metavar='FILE', help='also write JUnit XML')
    test.add_argument('--json', type=Path, metavar='FILE', help='also write all of it as JSON')
    test.set_defaults(parse_settings=parse_settings)


def _test(arguments: argparse.Namespace) -> int:
    from tww_ros.replay.bag_frames import BagFrames
    from tww_ros.replay.bag_questions import read_questions
    # Before the model is loaded, which can take minutes, what can be refused is refused.
    settings = arguments.parse_settings(arguments.set)
    questions = read_questions(arguments.questions)
    BagFrames(arguments.bag, questions.cameras)
    for path in filter(None, (arguments.junit, arguments.json)):
        if not path.absolute().parent.is_dir():
            raise ReplayError(f'{path}: there is no folder {path.absolute().parent}; make it '
                              'first')
    name = arguments.model or questions.model
    if not name:
        raise ReplayError(f'{questions.file}: expected a model, there or as --model; got none')

    from rich.console import Console

    from tww_ros import load_model
    from tww_ros.replay.bag_test import run_bag_test
    model = load_model(name, quantization=arguments.quantization or questions.quantization,
                       device=arguments.device, dtype=arguments.dtype)
    report = run_bag_test(arguments.bag, questions, model, settings, arguments.timeout)
    report.print(Console(highlight=False, markup=False, emoji=False))
    for path, text in ((arguments.junit, report.to_junit), (arguments.json, report.to_json)):
        if path is not None:
            _write(path, text())
    return 1 if report.failed else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding='utf-8', errors='replace')
    except OSError as error:
        raise ReplayError(f'{path} cannot be written: {error.strerror or error}') from error
