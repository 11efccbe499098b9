"""`tww data`: make data sets (from the tabletop, from users' videos) and look through them.

In: arguments. Out: a folder, or a summary; what is wrong with a data set goes to stderr, one line
a sample, and the exit code is 1. Imports are inside the functions: `tww --help` needs no torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# Lines about broken samples that are printed before only their number is.
_MOST_ERRORS = 20


def register_data(commands: Any, add: Any) -> None:
    """Declare `tww data …`; `add` is the CLI's helper that declares a command."""
    data = commands.add_parser('data', help='make data sets for training, or check one')
    parts = data.add_subparsers(title='commands', metavar='COMMAND', required=True)
    tabletop = add(parts, 'tabletop', _tabletop, 'make a data set from the tabletop world', """
        tww data tabletop --out data/tabletop --stage all --samples 100
        tww data tabletop --out data/test --stage 2 --samples 20 --seed 7 --split test""")
    _add_common(tabletop)
    tabletop.add_argument('--stage', choices=('1', '2', '3', 'all'), default='all',
                          help='1 single rounds, 2 many rounds, 3 long streams (default: all)')
    tabletop.add_argument('--samples', type=int, default=100, metavar='N',
                          help='of each stage (default: %(default)s)')
    tabletop.add_argument('--seed', type=int, default=0)
    tabletop.add_argument('--split', choices=('train', 'test'), default='train',
                          help='the two share no world (default: %(default)s)')
    tabletop.add_argument('--size', type=int, default=192, metavar='PX',
                          help='side of the frames (default: %(default)s)')

    video = add(parts, 'video', _video, 'make a data set from your own videos', """
        tww data video --video shop.mp4 --captions shop.srt --questions shop.json --out data/shop
        tww data video --video shop.mp4 --questions shop.json --out data/shop --teacher http://localhost:8000/v1 --teacher-model Qwen3-VL-32B""")  # noqa: E501
    video.add_argument('--video', type=Path, action='append', required=True, metavar='FILE',
                       help='again for more, with as many --questions')
    video.add_argument('--questions', type=Path, action='append', required=True, metavar='FILE',
                       help='.json or .jsonl; docs/training.md has the format')
    video.add_argument('--captions', type=Path, action='append', default=[], metavar='FILE',
                       help='.json, .jsonl or .srt; without them a teacher writes the notes')
    _add_common(video)
    video.add_argument('--segment-s', type=float, default=4.0, metavar='SECONDS',
                       help='length of a segment (default: %(default)g)')
    video.add_argument('--sample-fps', type=float, default=1.0, metavar='N',
                       help='frames per second taken (default: %(default)g)')
    video.add_argument('--max-side', type=int, default=518, metavar='PX',
                       help='larger frames are shrunk (default: %(default)s)')
    video.add_argument('--teacher', metavar='URL',
                       help='OpenAI-compatible endpoint, http://host:port/v1; the key is read '
                            'from $TWW_TEACHER_KEY')
    video.add_argument('--teacher-model', default='', metavar='NAME')
    video.add_argument('--teacher-timeout', type=float, default=120.0, metavar='SECONDS',
                       help='for each reply (default: %(default)g)')

    check = add(parts, 'validate', _validate, 'look through a data set; exit 1 when something in '
                'it is wrong', """
        tww data validate data/tabletop
        tww data validate data/shop --model ~/Qwen3-VL-2B""")
    check.add_argument('folder', type=Path, metavar='DIR')
    check.add_argument('--model', metavar='NAME', help='count the tokens of this model too')


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--frames', choices=('jpg', 'png'), default='jpg',
                        help='(default: %(default)s)')
    parser.add_argument('--resume', action='store_true',
                        help='go on with a data set that is not complete')


def _tabletop(arguments: argparse.Namespace) -> int:
    from tww_ros.training.build import BuildOptions, build
    stages = (1, 2, 3) if arguments.stage == 'all' else (int(arguments.stage),)
    options = BuildOptions(arguments.out, stages, arguments.samples, arguments.seed,
                           arguments.split, arguments.size, arguments.frames)
    samples = build(options, arguments.resume, progress=sys.stderr.isatty())
    print(f'wrote {samples} samples to {arguments.out}')
    return 0


def _video(arguments: argparse.Namespace) -> int:
    from tww_ros.errors import DatasetError
    from tww_ros.training.captions import VideoOptions, VideoSource, build_videos
    from tww_ros.training.teacher import Teacher
    count = len(arguments.video)
    captions = arguments.captions or [None] * count
    for name, files in (('--questions', arguments.questions), ('--captions', captions)):
        if len(files) != count:
            raise DatasetError(f'{name}: expected {count} files, one for each --video, got '
                               f'{len(files)}')
    sources = tuple(VideoSource(*each) for each in zip(arguments.video, arguments.questions,
                                                       captions, strict=True))
    teacher = None
    if arguments.teacher:
        teacher = Teacher(arguments.teacher, arguments.teacher_model,
                          arguments.out / 'teacher_replies', timeout_s=arguments.teacher_timeout)
    options = VideoOptions(arguments.out, sources, arguments.segment_s, arguments.sample_fps,
                           arguments.max_side, arguments.frames)
    report = build_videos(options, teacher, arguments.resume, sys.stderr.isatty())
    for caption in report.unseen:
        print(f'ends after the last frame and is left out: {caption}', file=sys.stderr)
    print(f'wrote {report.samples} samples to {arguments.out}')
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from tww_ros.training.validate import codec_of, validate
    codec, config = codec_of(arguments.model) if arguments.model else (None, None)
    report = validate(arguments.folder, codec, config, progress=sys.stderr.isatty())
    for error in report.errors[:_MOST_ERRORS]:
        print(error, file=sys.stderr)
    if len(report.errors) > _MOST_ERRORS:
        print(f'… and {len(report.errors) - _MOST_ERRORS} more', file=sys.stderr)
    print('\n'.join(report.lines()))
    print(f'{len(report.errors)} samples are wrong' if report.errors else 'all of it is right')
    return 1 if report.errors else 0
