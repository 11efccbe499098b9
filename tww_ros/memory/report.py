"""A memory as one page for any browser: timeline, pictures, notes, questions and answers, search.

In: a store. Out: one HTML file that needs nothing else (no network, no other file; its policy
forbids both). It knows nothing of what is on the page: that is `page/` (HTML, CSS, JavaScript).

Pictures are most of the file, so long memories show some of theirs: those that answers rest on,
and as many others, evenly, as keep the page near 20 MB.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tww_ros import __version__
from tww_ros.memory.store_reading import StoreReader
from tww_ros.memory.store_schema import StoredAnswer, StoredSegment
from tww_ros.memory.thumbnail import MOST_BYTES, encode_thumbnail

_PAGE = Path(__file__).parent / 'page'
# Of at most 4 KiB each in base64.
MOST_PICTURES = 4_000
# A note of this text says that a segment is like the one before.
_QUIET = 'nothing new'
_YEAR_2001_NS = 1_000_000_000_000_000_000


@dataclass(frozen=True)
class Made:
    """What is on the page."""

    segments: int
    answers: int
    pictures: int
    pictures_left_out: int


def write_report(store: StoreReader, file: Path, title: str) -> Made:
    """Write the page of a memory."""
    segments, answers = store.segments(), store.answers()
    available = store.thumbnail_ids()
    chosen = choose_pictures([segment.id for segment in segments], set(available), answers)
    pictures = {}
    for segment_id in chosen:
        data = _small(store.thumbnail(segment_id))
        if data:
            pictures[segment_id] = base64.b64encode(data).decode()
    left_out = len(available) - len(chosen)
    content = _content(store, segments, answers)
    content.update(title=title, pictures=pictures, leftOut=left_out)
    # '<' would end the element that holds it.
    text = json.dumps(content, ensure_ascii=False, separators=(',', ':')).replace('<', '\\u003c')
    page = (_PAGE / 'page.html').read_text(encoding='utf-8')
    parts = {'title': html.escape(title), 'data': text}
    for name, source in (('style', 'page.css'), ('script', 'page.js')):
        parts[name] = (_PAGE / source).read_text(encoding='utf-8')
    with open(file, 'w', encoding='utf-8', errors='replace') as out:
        for number, piece in enumerate(page.split('{{')):
            name, _, rest = piece.partition('}}')
            out.write(parts[name] + rest if number else piece)
    return Made(len(segments), len(answers), len(pictures), left_out)


def choose_pictures(order: Sequence[int], available: set[int], answers: Sequence[StoredAnswer],
                    most: int = MOST_PICTURES) -> list[int]:
    """Segments whose picture is shown: all; or those of evidence, and others evenly over time."""
    ids = [segment_id for segment_id in order if segment_id in available]
    if len(ids) <= most:
        return ids
    proofs = {segment_id for answer in answers for segment_id, _ in answer.evidence}
    cited = [segment_id for segment_id in ids if segment_id in proofs][:most]
    rest = [segment_id for segment_id in ids if segment_id not in proofs]
    room = most - len(cited)
    return cited + [rest[number * len(rest) // room] for number in range(room)]


def _content(store: StoreReader, segments: list[StoredSegment],
             answers: list[StoredAnswer]) -> dict[str, Any]:
    """What page.js reads. Stamps are in ms: a JavaScript number holds no ns since 1970."""
    texts, episodes = defaultdict(list), []
    known = {segment.id for segment in segments}
    for note in store.notes():
        if note.kind == 'note':
            texts[note.segment_id].append(note.text)
        elif note.last_id in known:
            episodes.append([note.segment_id, note.last_id, note.text])
    cameras = sorted({segment.camera for segment in segments})
    place_of = {camera: number for number, camera in enumerate(cameras)}
    identity = store.identity
    return {
        'cameras': cameras, 'episodes': episodes, 'quiet': _QUIET,
        'dated': bool(segments) and segments[-1].start_ns > _YEAR_2001_NS,
        'model': f'{identity.model}, {identity.positions} positions' if identity else '',
        'made': f'Made by tww_ros {__version__}: tww memory report.',
        'segments': [[each.id, place_of[each.camera], each.epoch, _ms(each.start_ns),
                      _ms(each.end_ns), each.frames, each.tokens, '\n'.join(texts[each.id]),
                      _told_pose(each)] for each in segments],
        'answers': [[each.question, each.answer, _ms(each.asked_ns), _ms(each.as_of_ns),
                     each.epoch, each.session, each.choices, each.probabilities, each.reasoning,
                     each.evidence, each.total_s] for each in answers]}


def _told_pose(segment: StoredSegment) -> str:
    if segment.pose is None:
        return ''
    return f'at {", ".join(f"{value:.1f}" for value in segment.pose.position_m)} m'


def _ms(stamp_ns: int) -> int:
    return round(stamp_ns / 1_000_000)


def _small(jpeg: bytes | None) -> bytes:
    """The picture within its bytes; nothing when it is none."""
    if jpeg is None or len(jpeg) <= MOST_BYTES:
        return jpeg or b''
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            return encode_thumbnail(image)
    except OSError:
        return b''
