"""`tww`: ask about a video, make, replay and test bags, check the machine, list the settings.

In: command-line arguments. Out: words on stdout (JSON with --json), errors as one line on stderr.
Exit codes: 0 done, 1 a check or a target failed, 2 it could not be done as asked, 130 interrupted.
Each command imports what it needs when it runs, so `tww --help` needs neither torch nor ROS.

Engine settings have one flag for all of them, `--set watch.sample_fps=1.0`; the names, types and
ranges are those of `tww_ros.config` (`tww params` lists them).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tww_ros import __version__
from tww_ros.config import CHANGES, EngineConfig, NodeConfig, Setting, settings
from tww_ros.errors import ConfigError, ReplayError, TwwError
from tww_ros.evaluation.commands import register as eval_command
from tww_ros.memory.commands import register as memory_command
from tww_ros.replay.commands import register as test_command
from tww_ros.training.commands import register_data
from tww_ros.training.train import register as train_command

_WORDS = {'true': True, 'yes': True, 'on': True, '1': True,
          'false': False, 'no': False, 'off': False, '0': False}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, 'run'):
        parser.print_help()
        return 2
    if not arguments.debug:
        # It tells of an optional package when it is imported; `tww doctor` checks what matters.
        logging.getLogger('bitsandbytes').setLevel(logging.ERROR)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code or 0
    except TwwError as error:
        if arguments.debug:
            raise
        print(f'tww: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`tww params | head`): not worth a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """['watch.sample_fps=1', …] → {'watch.sample_fps': 1.0, …}, by each setting's own type.

    Raises ConfigError for an unknown name or a value of another type; ranges are for EngineConfig.
    """
    known = {entry.name: entry for entry in settings(EngineConfig)}
    values = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition('='))
        if not sign:
            raise ConfigError(f'expected NAME=VALUE such as watch.sample_fps=1.0, got {text!r}')
        if name not in known:
            raise ConfigError(f'unknown setting {name!r}; `tww params` lists them all')
        values[name] = _parse_value(known[name], value)
    return values


def _parse_value(entry: Setting, text: str) -> Any:
    try:
        return _WORDS[text.lower()] if entry.type is bool else entry.type(text)
    except (KeyError, ValueError):
        kind = 'true or false' if entry.type is bool else entry.type.__name__
        raise ConfigError(f'{entry.name}: expected {kind}, got {text!r}') from None


# tww ask

def _ask(arguments: argparse.Namespace) -> int:
    from tww_ros.model.marks import local_marks
    from tww_ros.replay.asking import AskOptions, ask_and_print
    config = EngineConfig.from_flat({**local_marks(arguments.model).settings,
                                     'step.deterministic': True,
                                     **parse_settings(arguments.set)})
    choices = arguments.choices.split(',') if arguments.choices is not None else ()
    return ask_and_print(AskOptions(
        video=arguments.video, texts=arguments.question, times_s=arguments.at, config=config,
        choices=tuple(choice.strip() for choice in choices), session=arguments.session,
        max_new_tokens=arguments.max_new_tokens, timeout_s=arguments.timeout,
        as_json=arguments.json, sheet=arguments.sheet,
        model={'name': arguments.model, 'quantization': arguments.quantization,
               'device': arguments.device, 'dtype': arguments.dtype,
               'positions': arguments.positions, 'prompts': arguments.prompts}))


# tww demo

def _demo(arguments: argparse.Namespace) -> int:
    try:
        from tww_ros.model.marks import EMBEDDED
        from tww_ros.node.demo import DemoOptions, run_demo
        from tww_ros.node.video_demo import VideoDemoOptions, run_video_demo
    except ImportError as error:
        raise ReplayError(f'the demo needs ROS 2, and {error.name or error} cannot be imported; '
                          'run scripts/demo, or scripts/run tww demo') from error
    common = {'quantization': arguments.quantization, 'sheet': arguments.sheet}
    if arguments.seconds is not None:
        common['seconds'] = arguments.seconds
    shipped = (EMBEDDED / 'config.json').is_file()
    if arguments.video is None and (arguments.model == 'embedded' or (
            arguments.model is None and (shipped or arguments.seed is not None))):
        return run_demo(DemoOptions(seed=arguments.seed, **common))
    if arguments.seed is not None:
        raise ConfigError('expected --seed with the simulated table only; leave it out, or leave '
                          'out --video and --model')
    return run_video_demo(VideoDemoOptions(
        video=arguments.video, model=arguments.model or 'tiny-random', **common))


# tww bag, tww replay

def _bag_from_video(arguments: argparse.Namespace) -> int:
    from tww_ros.replay.bag import write_bag_from_video
    info = write_bag_from_video(
        arguments.video, arguments.out, storage=arguments.storage, compressed=arguments.compressed,
        topic=arguments.topic, fps=arguments.fps, max_seconds=arguments.max_seconds,
        frame_id=arguments.frame_id, progress=sys.stderr.isatty())
    print(f'wrote {info.path}: {info.messages} images on {info.topics[0].name}, '
          f'{info.duration_s:.1f} s, {info.size_bytes / 1e6:.1f} MB')
    return 0


def _bag_info(arguments: argparse.Namespace) -> int:
    from tww_ros.replay.bag import bag_info
    info = bag_info(arguments.bag)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(info), 'path': str(info.path)}, indent=2))
        return 0
    print(f'{info.path}: {info.storage}, {info.messages} messages, {info.duration_s:.1f} s, '
          f'{info.size_bytes / 1e6:.1f} MB')
    print(f'  first {info.start_ns} ns, last {info.end_ns} ns')
    for topic in info.topics:
        print(f'  {topic.name}   {topic.msgtype}   {topic.messages} messages')
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from tww_ros.replay.bag import read_bag
    remap = {}
    for text in arguments.topic_map:
        old, sign, new = text.partition(':=')
        if not (sign and old.startswith('/') and new.startswith('/')):
            raise ReplayError(f'expected --topic-map /old:=/new, got {text!r}')
        remap[old] = new
    bag = read_bag(arguments.bag, arguments.topic or None)
    try:
        from tww_ros.node.bag_publisher import publish_bag
    except ImportError as error:
        raise ReplayError(f'publishing needs ROS 2, and {error.name or error} cannot be imported; '
                          'source your ROS 2 and this workspace, or use scripts/run tww replay …'
                          ) from error
    report = publish_bag(bag, rate=0.0 if arguments.as_fast_as_possible else arguments.rate,
                         loop=arguments.loop, clock=arguments.clock, remap=remap,
                         flow_node=arguments.node, wait_for_subscribers_s=arguments.wait,
                         progress=True)
    print(f'published {report.messages} messages ({report.images} images) in '
          f'{report.seconds:.1f} s on {", ".join(report.topics)}')
    if report.skipped_topics:
        print(f'skipped, for want of their message types: {", ".join(report.skipped_topics)}')
    if report.lost:
        print(f'{report.lost} images were lost on the way; start the node with '
              'image_reliability:=reliable to lose none', file=sys.stderr)
    return 0


# tww doctor, params, bench

def _doctor(arguments: argparse.Namespace) -> int:
    from tww_ros.doctor import diagnose
    return diagnose(as_json=arguments.json)


def _params(arguments: argparse.Namespace) -> int:
    text = settings_markdown() if arguments.format == 'markdown' else settings_yaml()
    sys.stdout.write(text)
    return 0


def settings_markdown() -> str:
    """The two tables of docs/settings.md."""
    lines = ['# Settings', '',
             'Made by `tww params > docs/settings.md` from `tww_ros/config.py`; not edited by '
             'hand.', '', '## Engine', '',
             'Each is a ROS parameter of the node, and `--set NAME=VALUE` on the command line.',
             '', *_table(EngineConfig), '', '## Node', '',
             'ROS parameters only. `cameras` (a list of names) says which topics are watched: '
             '`<name>/image` each, and `image` for the default `[camera]`.',
             '', 'change: when a parameter that is set on a running node takes effect. `next '
             'configure` is refused while the node is configured: `ros2 lifecycle set` deactivate '
             'and cleanup, set it, configure and activate.',
             '', *_table(NodeConfig)]
    return '\n'.join(lines) + '\n'


def _table(config: type) -> list[str]:
    return ['| setting | type | default | allowed | change | what it does |',
            '|---|---|---|---|---|---|',
            *(f'| `{entry.name}` | {entry.type.__name__} | {_literal(entry)} | '
              f'{_allowed(entry)} | {CHANGES[entry.change]} | {entry.help} |'
              for entry in settings(config))]


def settings_yaml() -> str:
    """All settings as a ROS parameter file with their defaults."""
    lines = ['# Made by `tww params --format yaml`; the values are the defaults.',
             '/**:', '  ros__parameters:']
    for entry in settings(NodeConfig):
        lines += [f'    # {entry.help} ({_allowed(entry)})',
                  f'    {entry.name}: {_literal(entry)}']
    section = ''
    for entry in settings(EngineConfig):
        part, key = entry.name.split('.')
        if part != section:
            section = part
            lines.append(f'    {part}:')
        lines += [f'      # {entry.help} ({_allowed(entry)})', f'      {key}: {_literal(entry)}']
    return '\n'.join(lines) + '\n'


def _literal(entry: Setting) -> str:
    if entry.type is bool:
        return str(entry.default).lower()
    return str(entry.default) if entry.default != '' else '""'


def _allowed(entry: Setting) -> str:
    if entry.type is bool:
        return 'true, false'
    if entry.choices:
        return ', '.join(map(str, entry.choices))
    if entry.low is None:
        return 'any'
    return f'{entry.type(entry.low)} to {entry.type(entry.high)}'


def _bench(arguments: argparse.Namespace) -> int:
    roots = dict.fromkeys((Path(__file__).resolve().parents[1], Path.cwd()))
    folders = [root / 'benchmarks' for root in roots if (root / 'benchmarks').is_dir()]
    found = {path.stem: path for folder in reversed(folders) for path in folder.glob('[!_]*.py')}
    path = found.get(arguments.name.replace('-', '_'))
    if path is None:
        raise ConfigError(f'no benchmark {arguments.name!r}; known: '
                          f'{", ".join(sorted(found)) or "none (run it in the repository)"}')
    spec = importlib.util.spec_from_file_location(f'benchmarks.{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the names of their annotations.
    sys.modules[spec.name] = module
    # Benchmarks import helpers that lie beside them.
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module.main(arguments.arguments)


# Arguments

def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog='tww', description='Think While Watching: a memory of what cameras saw, and answers '
                                'about it.')
    parser.add_argument('--version', action='version', version=f'tww_ros {__version__}')
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title='commands', metavar='COMMAND')

    ask = _command(commands, 'ask', _ask, 'ask about a video file, without ROS', """
        tww ask --video street.mp4 --at 3.0 'What is on the road?'
        tww ask --video street.mp4 --at 3 --at 6 'How many people?' --choices one,two,three
        tww ask --video street.mp4 --model ~/Qwen3-VL-2B --quantization nf4 --json 'What moved?'
        tww ask --video street.mp4 --set watch.sample_fps=1.0 --sheet seen.png 'What is that?'""")
    ask.add_argument('question', nargs='+', help='one or more questions')
    ask.add_argument('--video', required=True, type=Path, help='a video file')
    ask.add_argument('--at', action='append', type=float, default=[], metavar='SECONDS',
                     help='when to ask, in seconds of the video; again for more (default: the '
                          'end). One time serves all questions, one question all times, else in '
                          'pairs')
    ask.add_argument('--model', default='tiny-random',
                     help='a checkpoint directory, a hub id, or tiny-random (the default: its '
                          'words mean nothing)')
    ask.add_argument('--quantization', default='none', choices=('none', 'int8', 'nf4'))
    ask.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, …')
    ask.add_argument('--dtype', default='auto',
                     choices=('auto', 'float32', 'bfloat16', 'float16'))
    ask.add_argument('--positions', default='auto', choices=('auto', 'continuous', 'decoupled'))
    ask.add_argument('--prompts', default='auto', choices=('auto', 'stock', 'tww'))
    ask.add_argument('--choices', metavar='A,B,…', help='allowed answers; each gets a probability')
    ask.add_argument('--session', default='default', help='name of the conversation')
    ask.add_argument('--max-new-tokens', type=int, default=64, metavar='N')
    ask.add_argument('--timeout', type=float, default=600.0, metavar='SECONDS',
                     help='longest wait for memory or for one answer (default: %(default)g)')
    ask.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                     help='an engine setting (see `tww params`); again for more')
    ask.add_argument('--json', action='store_true', help='print one JSON object')
    ask.add_argument('--sheet', type=Path, metavar='PNG',
                     help='also draw the watched frames with their notes')

    demo = _command(commands, 'demo', _demo, 'watch a table or a video over ROS 2 and answer '
                                             'meanwhile', """
        tww demo
        tww demo --seed 1000000042 --seconds 40
        tww demo --model tiny-random
        tww demo --video street.mp4 --model ~/Qwen3-VL-2B --quantization nf4""")
    demo.add_argument('--video', type=Path, help='a video file to watch instead of the simulated '
                                                 'table; with --model alone, a sample')
    demo.add_argument('--model', help='as for tww ask; the default is embedded for the table, '
                                      'which is all it knows, and tiny-random for a video')
    demo.add_argument('--quantization', default='none', choices=('none', 'int8', 'nf4'))
    demo.add_argument('--seconds', type=float, help='how long (default: 60 of the table, 12 of a '
                                                    'video)')
    demo.add_argument('--seed', type=int, help='which table (default: a new one)')
    demo.add_argument('--sheet', type=Path, default=Path('tww_demo.png'), metavar='PNG',
                      help='picture of the questions, or of what was watched '
                           '(default: %(default)s)')

    bag = commands.add_parser('bag', help='make or look into a rosbag2 bag, without ROS')
    bag_commands = bag.add_subparsers(title='commands', metavar='COMMAND', required=True)
    make = _command(bag_commands, 'from-video', _bag_from_video, 'make a bag from a video', """
        tww bag from-video street.mp4 street_bag
        tww bag from-video street.mp4 street_bag --compressed jpeg --fps 10 --max-seconds 30""")
    make.add_argument('video', type=Path)
    make.add_argument('out', type=Path, help='the bag: a folder that does not exist yet')
    make.add_argument('--storage', default='mcap', choices=('mcap', 'sqlite3'))
    make.add_argument('--compressed', choices=('jpeg', 'png'),
                      help='CompressedImage on <topic>/compressed instead of raw images')
    make.add_argument('--topic', default='/image', help='(default: %(default)s)')
    make.add_argument('--fps', type=float, metavar='N', help='thin out to about N per second')
    make.add_argument('--max-seconds', type=float, metavar='S', help='stop after S seconds')
    make.add_argument('--frame-id', default='camera', help='frame_id of the headers')
    info = _command(bag_commands, 'info', _bag_info, 'what a bag holds', """
        tww bag info street_bag""")
    info.add_argument('bag', type=Path)
    info.add_argument('--json', action='store_true')

    replay = _command(commands, 'replay', _replay, 'publish a bag over ROS 2', """
        tww replay street_bag
        tww replay street_bag --rate 2 --loop --topic-map /image:=/front/image
        tww replay street_bag --as-fast-as-possible --node /tww""")
    replay.add_argument('bag', type=Path)
    speed = replay.add_mutually_exclusive_group()
    speed.add_argument('--rate', type=float, default=1.0, help='2 = twice as fast as recorded')
    speed.add_argument('--as-fast-as-possible', action='store_true',
                       help='as fast as the node takes the frames; start it with '
                            'image_reliability:=reliable, so that none is lost on the way')
    replay.add_argument('--loop', action='store_true', help='again and again, until interrupted')
    replay.add_argument('--clock', action=argparse.BooleanOptionalAction, default=True,
                        help='publish /clock (default: yes)')
    replay.add_argument('--topic', action='append', default=[], metavar='/NAME',
                        help='publish only this topic; again for more')
    replay.add_argument('--topic-map', action='append', default=[], metavar='/OLD:=/NEW')
    replay.add_argument('--node', default='/tww', help='the node whose status sets the pace '
                                                       '(default: %(default)s)')
    replay.add_argument('--wait', type=float, default=10.0, metavar='SECONDS',
                        help='wait this long for a subscriber, 0 = not (default: %(default)g)')

    doctor = _command(commands, 'doctor', _doctor, 'check this machine; exit 1 when something '
                      'needed is broken', """
        tww doctor""")
    doctor.add_argument('--json', action='store_true')
    params = _command(commands, 'params', _params, 'list all settings', """
        tww params > docs/settings.md
        tww params --format yaml > my_params.yaml""")
    params.add_argument('--format', default='markdown', choices=('markdown', 'yaml'))
    register_data(commands, _command)
    train_command(commands, _command)
    eval_command(commands, _command, parse_settings)
    memory_command(commands, _command)
    test_command(commands, _command, parse_settings)
    bench = _command(commands, 'bench', _bench, 'run a benchmark of the repository', """
        tww bench slice --quick --json slice.json
        tww bench ros --model embedded --json ros.json""")
    bench.add_argument('name', help='attention, decode, memory, overlap, ros, scale or slice')
    bench.add_argument('arguments', nargs=argparse.REMAINDER, help='passed on to the benchmark')
    return parser


def _command(commands: Any, name: str, run: Any, help: str,
             examples: str) -> argparse.ArgumentParser:
    lines = '\n'.join(f'  {line.strip()}' for line in examples.strip().splitlines())
    parser = commands.add_parser(name, help=help, description=f'{help[0].upper()}{help[1:]}.',
                                 epilog=f'examples:\n{lines}',
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--debug', action='store_true', help='show where an error comes from')
    parser.set_defaults(run=run)
    return parser


if __name__ == '__main__':
    sys.exit(main())
