"""What a memory on disk holds: its tables, its records, and what its text search is asked.

In: rows of the database. Out: frozen records; and the other way round. It knows nothing of files,
threads, models or tensors.

    meta        key, value                  the Identity, the versions that made it
    epochs      number, first stamp
    segments    one row each                thumbnails: apart, so that lists do not page through pictures
    notes       of one segment, or of a run of them (an episode); notes_index: their words (FTS5)
    answers     questions with their answers and evidence
    blocks      what lies under blocks/: size, checksum, metadata

Ids are never used twice, also not after everything was removed.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tww_ros.types import Pose

# 'twwm': tells a memory from any other SQLite file.
APPLICATION_ID = 0x7477776D
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE epochs (id INTEGER PRIMARY KEY, t0_ns INTEGER NOT NULL);
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, place INTEGER NOT NULL, camera TEXT NOT NULL,
    epoch INTEGER NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    frames INTEGER NOT NULL, tokens INTEGER NOT NULL, closed_by TEXT NOT NULL,
    pose TEXT NOT NULL, extra TEXT NOT NULL);
CREATE INDEX segments_by_place ON segments (place);
CREATE TABLE thumbnails (
    id INTEGER PRIMARY KEY REFERENCES segments ON DELETE CASCADE, jpeg BLOB NOT NULL);
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, segment_id INTEGER NOT NULL,
    last_id INTEGER NOT NULL REFERENCES segments ON DELETE CASCADE,
    kind TEXT NOT NULL, text TEXT NOT NULL, tokens INTEGER NOT NULL, finish_reason TEXT NOT NULL,
    seconds REAL NOT NULL);
CREATE INDEX notes_by_segment ON notes (last_id);
CREATE VIRTUAL TABLE notes_index USING fts5 (
    text, content='notes', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
CREATE TRIGGER note_added AFTER INSERT ON notes BEGIN
    INSERT INTO notes_index (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER note_removed AFTER DELETE ON notes BEGIN
    INSERT INTO notes_index (notes_index, rowid, text) VALUES ('delete', old.id, old.text);
END;
CREATE TABLE answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, question TEXT NOT NULL, answer TEXT NOT NULL,
    asked_ns INTEGER NOT NULL, as_of_ns INTEGER NOT NULL, epoch INTEGER NOT NULL,
    session TEXT NOT NULL, choices TEXT NOT NULL, probabilities TEXT NOT NULL,
    reasoning TEXT NOT NULL, finish_reason TEXT NOT NULL, evidence TEXT NOT NULL,
    wall_ns INTEGER NOT NULL, total_s REAL NOT NULL);
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    segment_id INTEGER NOT NULL REFERENCES segments ON DELETE CASCADE,
    name TEXT NOT NULL, nbytes INTEGER NOT NULL, sha256 TEXT NOT NULL, metadata TEXT NOT NULL,
    lost TEXT NOT NULL, UNIQUE (segment_id, name))
"""
# Those with rows to be saved one by one when a file is damaged; parents first.
TABLES = ('epochs', 'segments', 'thumbnails', 'notes', 'answers', 'blocks')

# What questions are made of and notes are not about. A question of nothing else keeps them.
STOP_WORDS = frozenset(
    'a an the this that these those it its i you he she we they them his her their my your me us '
    'is are was were be been being am do does did done has have had having can could will would '
    'shall should may might must of in on at to from by with for about into and or but if as than '
    'so what which who whom whose when where why how there here any some ever s t re ve ll d m '
    'please tell show find see seen saw'.split())
# Forms of one word that the index's stemmer does not bring together, as an FTS5 expression.
IRREGULAR = {
    form: ' OR '.join(f'"{each}"' for each in (word, *forms.split()))
    for word, forms in {
        'break': 'broke broken', 'bring': 'brought', 'build': 'built', 'carry': 'carried',
        'catch': 'caught', 'come': 'came', 'drive': 'drove driven', 'fall': 'fell fallen',
        'give': 'gave given', 'go': 'went gone', 'hold': 'held', 'leave': 'leaving',
        'lie': 'lying lain', 'lose': 'lost', 'ride': 'rode ridden', 'run': 'ran', 'sit': 'sat',
        'stand': 'stood', 'take': 'took taken', 'throw': 'threw thrown', 'wear': 'wore worn',
    }.items() for form in (word, *forms.split())}
# A pasted page is not a better question.
MOST_TERMS = 64


@dataclass(frozen=True)
class Identity:
    """What KV blocks depend on: another model, other weights or other positions cannot use them.

    weights: a fingerprint that the caller computes. positions: the position scheme.
    """

    model: str
    weights: str
    positions: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def differences(self, other: Identity) -> list[str]:
        """'positions: continuous here, decoupled wanted' for each field that differs."""
        return [f'{each.name}: {getattr(self, each.name)} here, {getattr(other, each.name)} wanted'
                for each in dataclasses.fields(self)
                if getattr(self, each.name) != getattr(other, each.name)]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """The identity that `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class StoredSegment:
    """One segment. order: its place among all; extra: what the caller wants back (JSON)."""

    id: int
    order: int
    camera: str
    epoch: int
    start_ns: int
    end_ns: int
    frames: int = 0
    tokens: int = 0
    closed_by: str = ''
    pose: Pose | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The values of its row."""
        pose = '' if self.pose is None else json.dumps(
            [self.pose.frame_id, *map(float, self.pose.position_m),
             *map(float, self.pose.orientation_xyzw)])
        return {'id': self.id, 'place': self.order, 'camera': clean(self.camera),
                'epoch': self.epoch, 'start_ns': self.start_ns, 'end_ns': self.end_ns,
                'frames': self.frames, 'tokens': self.tokens, 'closed_by': self.closed_by,
                'pose': clean(pose), 'extra': json.dumps(dict(self.extra))}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredSegment:
        """The record of a row; ValueError when it was altered."""
        pose = None
        if row['pose']:
            frame_id, *numbers = json.loads(row['pose'])
            pose = Pose(frame_id, tuple(numbers[:3]), tuple(numbers[3:]))
        return cls(row['id'], row['place'], row['camera'], row['epoch'], row['start_ns'],
                   row['end_ns'], row['frames'], row['tokens'], row['closed_by'], pose,
                   json.loads(row['extra']))


@dataclass(frozen=True)
class StoredNote:
    """A note about one segment, or (kind 'episode') about the run of ids segment_id to last_id.

    last_id: -1 for the same. id: given by the store.
    """

    segment_id: int
    text: str
    kind: str = 'note'
    last_id: int = -1
    tokens: int = 0
    finish_reason: str = ''
    seconds: float = 0.0
    id: int = -1

    def __post_init__(self) -> None:
        if self.last_id < 0:
            object.__setattr__(self, 'last_id', self.segment_id)

    def row(self) -> dict[str, Any]:
        """The values of its row, without the id."""
        return {'segment_id': self.segment_id, 'last_id': self.last_id, 'kind': self.kind,
                'text': clean(self.text), 'tokens': self.tokens,
                'finish_reason': self.finish_reason, 'seconds': self.seconds}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredNote:
        """The record of a row."""
        return cls(row['segment_id'], row['text'], row['kind'], row['last_id'], row['tokens'],
                   row['finish_reason'], row['seconds'], row['id'])


@dataclass(frozen=True)
class StoredAnswer:
    """A question with its answer.

    asked_ns, as_of_ns: stamps. evidence: (segment id, score), the strongest first. wall_ns: when
    it was answered by the clock of the machine. total_s: how long that took. id: by the store.
    """

    question: str
    answer: str
    asked_ns: int
    as_of_ns: int
    epoch: int = 0
    session: str = 'default'
    choices: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    reasoning: str = ''
    finish_reason: str = ''
    evidence: tuple[tuple[int, float], ...] = ()
    wall_ns: int = 0
    total_s: float = 0.0
    id: int = -1

    def row(self) -> dict[str, Any]:
        """The values of its row, without the id."""
        return {'question': clean(self.question), 'answer': clean(self.answer),
                'asked_ns': self.asked_ns, 'as_of_ns': self.as_of_ns, 'epoch': self.epoch,
                'session': clean(self.session), 'choices': json.dumps(list(self.choices)),
                'probabilities': json.dumps(list(self.probabilities)),
                'reasoning': clean(self.reasoning), 'finish_reason': self.finish_reason,
                'evidence': json.dumps(list(self.evidence)), 'wall_ns': self.wall_ns,
                'total_s': self.total_s}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredAnswer:
        """The record of a row; ValueError when it was altered."""
        evidence = tuple((int(segment), float(score))
                         for segment, score in json.loads(row['evidence']))
        return cls(row['question'], row['answer'], row['asked_ns'], row['as_of_ns'], row['epoch'],
                   row['session'], tuple(json.loads(row['choices'])),
                   tuple(json.loads(row['probabilities'])), row['reasoning'],
                   row['finish_reason'], evidence, row['wall_ns'], row['total_s'], row['id'])


@dataclass(frozen=True)
class StoredBlock:
    """What is known of a KV block without reading it. lost: why it cannot be read; '' = it can."""

    id: int
    segment_id: int
    name: str
    nbytes: int
    sha256: str
    metadata: Mapping[str, Any]
    lost: str = ''

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredBlock:
        """The record of a row; ValueError when it was altered."""
        return cls(row['id'], row['segment_id'], row['name'], row['nbytes'], row['sha256'],
                   json.loads(row['metadata']), row['lost'])


class Hit(NamedTuple):
    """A note that was found; segment_id to last_id is one segment, or an episode's run."""

    segment_id: int
    score: float
    last_id: int
    kind: str
    text: str


def clean(text: str) -> str:
    """The text as SQLite takes it: halves of surrogate pairs become '?'."""
    return text.encode('utf-8', 'replace').decode()


def terms(text: str) -> list[str]:
    """FTS5 expressions of the telling words of `text`, each by itself, and of every two that
    follow each other ('red ball'); none when it has no word.

    Every word is quoted, so that nothing of it is taken for syntax.
    """
    words = re.findall(r'\w+', clean(text).lower())
    telling = {word for word in words if word not in STOP_WORDS} or set(words)
    single = list(dict.fromkeys(word for word in words if word in telling))[:MOST_TERMS]
    pairs = list(dict.fromkeys(pair for pair in itertools.pairwise(words)
                               if telling.issuperset(pair)))[:MOST_TERMS]
    return list(dict.fromkeys([*(IRREGULAR.get(word, f'"{word}"') for word in single),
                               *(f'"{first} {second}"' for first, second in pairs)]))
