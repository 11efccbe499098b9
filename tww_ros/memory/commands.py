"""`tww memory`: look into a memory on disk, search it, take it elsewhere, make a page of it.

In: the folder of a memory, also one that is being written to. Out: lines on stdout, or a file. It
only reads, and needs no model. Imports are inside the functions: `tww --help` needs no numpy.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import datetime
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tww_ros.errors import StoreError

if TYPE_CHECKING:
    from tww_ros.memory.store import Store
    from tww_ros.memory.store_schema import StoredAnswer, StoredNote, StoredSegment


def register(commands: Any, add: Any) -> None:
    """Declare `tww memory …`; `add` is the CLI's helper that declares a command."""
    group = commands.add_parser('memory', help='look into a memory on disk')
    parts = group.add_subparsers(title='commands', metavar='COMMAND', required=True)

    lists = add(parts, 'list', _list, 'what a memory holds, segment by segment', """
        tww memory list ~/memory
        tww memory list ~/memory --camera front --last 20
        tww memory list ~/memory --json | jq .note""")
    _add_folder(lists)
    lists.add_argument('--camera', action='append', default=[], metavar='NAME',
                       help='only this camera; again for more')
    lists.add_argument('--last', type=int, metavar='N', help='only the newest N')
    lists.add_argument('--json', action='store_true', help='one JSON object a line')

    show = add(parts, 'show', _show, 'all that is known of one segment', """
        tww memory show ~/memory 12
        tww memory show ~/memory 12 --thumbnail 12.jpg""")
    _add_folder(show)
    show.add_argument('id', type=int, metavar='ID', help='as `tww memory list` has it')
    show.add_argument('--thumbnail', type=Path, metavar='JPG', help='also write its picture')
    show.add_argument('--json', action='store_true', help='print one JSON object')

    search = add(parts, 'search', _search, 'find notes by their words, best first', """
        tww memory search ~/memory 'red cup'
        tww memory search ~/memory 'where was the red cup?' --limit 3 --camera front""")
    _add_folder(search)
    search.add_argument('text', metavar='TEXT')
    search.add_argument('--limit', type=int, default=10, metavar='N',
                        help='(default: %(default)s)')
    search.add_argument('--camera', action='append', default=[], metavar='NAME',
                        help='only this camera; again for more')
    search.add_argument('--json', action='store_true', help='one JSON object a line')

    export = add(parts, 'export', _export, 'write everything but KV to one text file', """
        tww memory export ~/memory memory.jsonl
        tww memory export ~/memory memory.jsonl --thumbnails""")
    _add_folder(export)
    export.add_argument('file', type=Path, metavar='FILE.jsonl')
    export.add_argument('--thumbnails', action='store_true', help='pictures too, as base64')

    report = add(parts, 'report', _report, 'make a page for any browser: timeline, pictures, '
                 'notes, questions and answers, search', """
        tww memory report ~/memory memory.html
        tww memory report ~/memory memory.html --title 'Monday, ground floor'""")
    _add_folder(report)
    report.add_argument('file', type=Path, metavar='FILE.html')
    report.add_argument('--title', help='(default: the name of the folder)')


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', type=Path, metavar='DIR', help='the folder of the memory')


def _open(arguments: argparse.Namespace) -> Store:
    from tww_ros.memory.store import Store
    return Store.open(arguments.folder, None)


def _list(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        notes = _by_segment(store.notes())
        segments = store.segments(cameras=arguments.camera)
        if arguments.last is not None:
            segments = segments[-arguments.last:] if arguments.last > 0 else []
        if arguments.json:
            for segment in segments:
                print(json.dumps({**_plain(segment), 'note': notes.get(segment.id, '')}))
            return 0
        print(_summary(store))
        wide = max((len(segment.camera) for segment in segments), default=0)
        for segment in segments:
            print(f'{segment.id:6d}  {segment.camera:{wide}}  {told_span(segment)}  '
                  f'{segment.frames:3d} frames  {_words(notes, segment)}'.rstrip())
    return 0


def _summary(store: Store) -> str:
    identity = store.identity
    episodes = sum(note.kind == 'episode' for note in store.notes())
    return (f'{store.folder}: {len(store)} segments, {len(store.notes()) - episodes} notes, '
            f'{episodes} episodes, {len(store.answers())} answers, {store.nbytes / 1e6:.1f} MB; '
            + (f'made by {identity.model}, {identity.positions} positions' if identity
               else 'made without a model'))


def _show(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        segment = store.segment(arguments.id)
        notes, blocks = store.notes(segment.id), store.blocks(segment.id, lost=True)
        answers = [answer for answer in store.answers()
                   if any(each == segment.id for each, _ in answer.evidence)]
        jpeg = store.thumbnail(segment.id)
    if arguments.thumbnail is not None:
        if jpeg is None:
            raise StoreError(f'segment {segment.id} has no picture; leave out --thumbnail')
        with new_file(arguments.thumbnail) as path:
            path.write_bytes(jpeg)
    if arguments.json:
        print(json.dumps({**_plain(segment), 'notes': [_plain(note) for note in notes],
                          'blocks': [_plain(block) for block in blocks],
                          'answers': [_plain(answer) for answer in answers]}, indent=2))
        return 0
    print(f'segment {segment.id}: {segment.camera}, {told_span(segment)}, epoch {segment.epoch}')
    print(f'  {segment.frames} frames, {segment.tokens} tokens, closed by '
          f'{segment.closed_by or "?"}, picture of {len(jpeg or b"")} bytes')
    if segment.pose is not None:
        place = ', '.join(f'{value:.2f}' for value in segment.pose.position_m)
        print(f'  at ({place}) m in {segment.pose.frame_id}')
    if segment.extra:
        print(f'  {json.dumps(segment.extra)}')
    for note in notes:
        print(f'  {_told_note(note)}')
    for block in blocks:
        print(f'  KV {block.name!r}: '
              + (f'lost, {block.lost}' if block.lost else f'{block.nbytes / 1e6:.2f} MB'))
    for answer in answers:
        print(f'  evidence for {answer.question!r}: {answer.answer!r}')
    return 0


def _search(arguments: argparse.Namespace) -> int:
    with _open(arguments) as store:
        hits = store.search(arguments.text, limit=arguments.limit, cameras=arguments.camera)
        for hit in hits:
            segment = store.segment(hit.last_id)
            if arguments.json:
                print(json.dumps({**hit._asdict(), 'camera': segment.camera,
                                  'end_ns': segment.end_ns}))
            else:
                ids = str(hit.segment_id) if hit.kind == 'note' else \
                    f'{hit.segment_id}–{hit.last_id}'
                print(f'{ids:>9}  {segment.camera}  {told_span(segment)}  {hit.score:6.2f}  '
                      f'{_line(hit.text)}')
    if not hits and not arguments.json:
        print('no note has any of these words')
    return 0


def _export(arguments: argparse.Namespace) -> int:
    count = 0
    with _open(arguments) as store, new_file(arguments.file) as path, \
            open(path, 'w', encoding='utf-8', errors='replace') as file:
        for record in _records(store, arguments.thumbnails):
            file.write(json.dumps(record, ensure_ascii=False) + '\n')
            count += 1
    print(f'wrote {count} lines to {arguments.file}')
    return 0


def _records(store: Store, thumbnails: bool) -> Iterator[dict[str, Any]]:
    identity = store.identity
    yield {'type': 'memory', 'model': identity and dataclasses.asdict(identity)}
    for epoch, t0_ns in store.epochs().items():
        yield {'type': 'epoch', 'epoch': epoch, 't0_ns': t0_ns}
    for segment in store.segments():
        record = {'type': 'segment', **_plain(segment)}
        if thumbnails and (jpeg := store.thumbnail(segment.id)) is not None:
            record['thumbnail_jpeg'] = base64.b64encode(jpeg).decode()
        yield record
    for kind, rows in (('note', store.notes()), ('answer', store.answers())):
        for row in rows:
            yield {'type': kind, **_plain(row)}


def _report(arguments: argparse.Namespace) -> int:
    from tww_ros.memory.report import write_report
    with _open(arguments) as store, new_file(arguments.file) as path:
        made = write_report(store, path, arguments.title or arguments.folder.resolve().name)
        size = path.stat().st_size
    print(f'wrote {arguments.file}: {made.segments} segments, {made.pictures} pictures, '
          f'{made.answers} answers, {size / 1e6:.1f} MB')
    if made.pictures_left_out:
        print(f'{made.pictures_left_out} pictures were left out to keep the page small')
    return 0


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """A path beside `file` that takes its place when all went well."""
    if not file.resolve().parent.is_dir():
        raise StoreError(f'{file}: there is no folder {file.parent}; make it first')
    if file.exists() and not file.is_file():
        raise StoreError(f'expected a file to write to, got {file}, which is something else')
    try:
        with tempfile.TemporaryDirectory(prefix=f'.{file.name}-', dir=file.resolve().parent) as at:
            yield Path(at, file.name)
            os.replace(Path(at, file.name), file)
    except OSError as error:
        raise StoreError(f'{file} cannot be written: {error.strerror or error}') from error


def told_time(stamp_ns: int) -> str:
    """A stamp in words: a date and a time (UTC) since 2001, seconds before (simulated clocks)."""
    if stamp_ns < 1_000_000_000_000_000_000:
        return f'{stamp_ns / 1e9:.1f} s'
    seconds, rest_ns = divmod(stamp_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f'{moment:%Y-%m-%d %H:%M:%S}.{rest_ns // 100_000_000}'


def told_span(segment: StoredSegment) -> str:
    """From when to when a segment lasts."""
    return f'{told_time(segment.start_ns)} – {told_time(segment.end_ns)[-10:].strip()}'


def _told_note(note: StoredNote) -> str:
    run = '' if note.last_id == note.segment_id else f' ({note.segment_id}–{note.last_id})'
    return f'{note.kind}{run}: {_line(note.text)}'


def _by_segment(notes: list[StoredNote]) -> dict[int, str]:
    return {note.segment_id: note.text for note in notes if note.kind == 'note'}


def _words(notes: dict[int, str], segment: StoredSegment) -> str:
    return _line(notes.get(segment.id, ''))


def _line(text: str) -> str:
    return ' '.join(text.split())


def _plain(record: StoredSegment | StoredNote | StoredAnswer) -> dict[str, Any]:
    """A record as JSON takes it."""
    return dataclasses.asdict(record)
