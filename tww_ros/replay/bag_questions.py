"""The questions of a bag test: a YAML file → BagQuestions, or a ReplayError that names the line.

    model: embedded                     # --model wins; quantization: nf4 as well
    settings: {watch.sample_fps: 2.0}   # engine settings; --set wins
    cameras: {front: /front/image}      # camera → topic; default: every image topic
    questions:
      - ask: Is the door open?
        at: 12.5                        # seconds of the bag; or at_ns: …; default: its end
        choices: ['yes', 'no']
        expect: {choice: 'yes', probability: 0.8}

In: the file. Out: frozen records, in the order of the file. It does not know the bag.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tww_ros.config import EngineConfig, settings
from tww_ros.errors import ConfigError, QuestionError, ReplayError
from tww_ros.types import Question

FILE_KEYS = ('model', 'quantization', 'settings', 'cameras', 'questions')
QUESTION_KEYS = ('name', 'ask', 'at', 'at_ns', 'choices', 'session', 'cameras', 'max_new_tokens',
                 'expect')
EXPECT_KEYS = ('exact', 'choice', 'probability', 'contains', 'regex', 'evidence')
EVIDENCE_KEYS = ('from', 'to', 'camera', 'share')
QUANTIZATIONS = ('none', 'int8', 'nf4')


@dataclass(frozen=True)
class ExpectedEvidence:
    """Where the evidence lies. share: of the attention, at least; None = the strongest piece."""

    from_s: float
    to_s: float
    camera: str = ''
    share: float | None = None


@dataclass(frozen=True)
class Expected:
    """What must be true of an answer; None and () are not looked at."""

    exact: str | None = None
    choice: str | None = None
    probability: float | None = None
    contains: tuple[str, ...] = ()
    regex: str | None = None
    evidence: ExpectedEvidence | None = None


@dataclass(frozen=True)
class BagQuestion:
    """One question; at_s or at_ns says when, neither = at the end. line: where it stands."""

    name: str
    line: int
    question: Question
    expected: Expected
    at_s: float | None = None
    at_ns: int | None = None


@dataclass(frozen=True)
class BagQuestions:
    """A whole file."""

    file: Path
    questions: tuple[BagQuestion, ...]
    model: str = ''
    quantization: str = 'none'
    settings: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)


def read_questions(file: str | Path) -> BagQuestions:
    """Read a file; ReplayError names the file, the line, the field and what was expected."""
    file = Path(file)
    try:
        text = file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not UTF-8 text'
        raise ReplayError(f'{file}: the questions cannot be read ({reason}); expected a YAML file'
                          ) from error
    root = _load(text, str(file))
    root.mapping(FILE_KEYS)
    places = root['questions'].items()
    if not places:
        root['questions'].fail('at least one question')
    questions, lines = [], {}
    for number, place in enumerate(places, start=1):
        question = _question(place, f'q{number}')
        if question.name in lines:
            place.fail('a name of its own for every question',
                       f'{question.name!r}, as on line {lines[question.name]}')
        lines[question.name] = question.line
        questions.append(question)
    return BagQuestions(
        file, tuple(questions),
        model=root['model'].text() if 'model' in root else '',
        quantization=(root['quantization'].one_of(QUANTIZATIONS) if 'quantization' in root
                      else 'none'),
        settings=_settings(root['settings']) if 'settings' in root else {},
        cameras=({name: place.text() for name, place in root['cameras'].mapping().items()}
                 if 'cameras' in root else {}))


def _question(place: _Place, name: str) -> BagQuestion:
    place.mapping(QUESTION_KEYS)
    if 'at' in place and 'at_ns' in place:
        place['at_ns'].fail('at or at_ns', 'both')
    options: dict[str, Any] = {key: tuple(item.text() for item in place[key].items())
                               for key in ('choices', 'cameras') if key in place}
    if 'session' in place:
        options['session'] = place['session'].text()
    if 'max_new_tokens' in place:
        options['max_new_tokens'] = place['max_new_tokens'].whole(low=1)
    text = place['ask'].text()
    try:
        question = Question(text=text, **options)
    except QuestionError as error:
        place.fail('a question that can be asked', str(error))
    return BagQuestion(
        place['name'].text() if 'name' in place else name, place.line, question,
        _expected(place['expect'], question),
        at_s=place['at'].number(low=0) if 'at' in place else None,
        at_ns=place['at_ns'].whole(low=0) if 'at_ns' in place else None)


def _expected(place: _Place, question: Question) -> Expected:
    if not place.mapping(EXPECT_KEYS):
        place.fail(f'at least one of {", ".join(EXPECT_KEYS)}', 'none')
    choice = regex = probability = None
    if 'choice' in place:
        if not question.choices:
            place['choice'].fail('a question with choices', 'one without')
        choice = place['choice'].one_of(question.choices)
    if 'probability' in place:
        if choice is None:
            place['probability'].fail('choice beside it', 'none')
        probability = place['probability'].number(low=0, high=1)
    if 'regex' in place:
        regex = place['regex'].text()
        try:
            re.compile(regex)
        except re.error as error:
            place['regex'].fail('a regular expression of Python', f'{regex!r} ({error})')
    contains: tuple[str, ...] = ()
    if 'contains' in place:
        part = place['contains']
        contains = (tuple(item.text() for item in part.items()) if isinstance(part.value, list)
                    else (part.text(),))
    return Expected(place['exact'].text() if 'exact' in place else None, choice, probability,
                    contains, regex, _evidence(place['evidence']) if 'evidence' in place else None)


def _evidence(place: _Place) -> ExpectedEvidence:
    place.mapping(EVIDENCE_KEYS)
    from_s = place['from'].number(low=0)
    return ExpectedEvidence(
        from_s, place['to'].number(low=from_s),
        camera=place['camera'].text() if 'camera' in place else '',
        share=place['share'].number(low=0, high=1) if 'share' in place else None)


def _settings(place: _Place) -> dict[str, Any]:
    known = {entry.name: entry for entry in settings(EngineConfig)}
    values = {}
    for name, part in place.mapping().items():
        if name not in known:
            part.fail('a setting of the engine (`tww params` lists them)', repr(name))
        try:
            values[name] = known[name].check(part.value)
        except ConfigError as error:
            raise ReplayError(f'{part.file}:{part.line}: settings.{error}') from error
    return values


# YAML whose values know their lines

class _Place:
    """A value of a YAML document: a plain value, or places by key or number."""

    def __init__(self, value: Any, file: str, line: int, path: str) -> None:
        self.value = value
        self.file = file
        self.line = line
        self.path = path

    def fail(self, expected: str, got: str = '') -> NoReturn:
        where = f'{self.file}:{self.line}: {self.path}'.removesuffix(': ')
        raise ReplayError(f'{where}: expected {expected}, got {got or self._shown()}')

    def _shown(self) -> str:
        if isinstance(self.value, bool):
            return (f'{str(self.value).lower()}; YAML reads yes, no, on and off as that, so put '
                    'quotes around a text')
        if isinstance(self.value, (dict, list)):
            return 'a mapping' if isinstance(self.value, dict) else 'a list'
        return 'nothing' if self.value is None else json.dumps(self.value, default=str)

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def __getitem__(self, key: str) -> _Place:
        if key not in self.value:
            place = _Place(None, self.file, self.line, f'{self.path}.{key}'.lstrip('.'))
            place.fail('a value')
        return self.value[key]

    def mapping(self, known: tuple[str, ...] = ()) -> dict[str, _Place]:
        if not isinstance(self.value, dict):
            self.fail('a mapping' + (f' of {", ".join(known)}' if known else ''))
        for key, place in self.value.items():
            if known and key not in known:
                place.fail(f'one of the keys {", ".join(known)}', repr(key))
        return self.value

    def items(self) -> list[_Place]:
        if not isinstance(self.value, list):
            self.fail('a list')
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail('a text')
        return self.value

    def one_of(self, known: tuple[str, ...]) -> str:
        if self.value not in known:
            self.fail(f'one of {", ".join(known)}')
        return self.value

    def number(self, low: float, high: float = math.inf) -> float:
        value = self.value
        if (isinstance(value, bool) or not isinstance(value, (int, float))
                or not math.isfinite(value) or not low <= value <= high):
            self.fail(f'a number of at least {low:g}' if math.isinf(high)
                      else f'a number from {low:g} to {high:g}')
        return float(value)

    def whole(self, low: int) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < low:
            self.fail(f'an integer of at least {low}')
        return self.value


def _load(text: str, file: str) -> _Place:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ReplayError(f'{file}:1: expected a mapping of {", ".join(FILE_KEYS)}, got an '
                              'empty file')
        return _build(loader, node, file, '')
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ReplayError(f'{file}:{mark.line + 1}: expected YAML, got something else '
                          f'({error.problem or error.context}); see column {mark.column + 1}, '
                          'and put quotes around texts with : or ?') from error
    except (yaml.YAMLError, ValueError) as error:
        raise ReplayError(f'{file}: expected YAML, got something else ({error})') from error
    except RecursionError as error:
        raise ReplayError(f'{file}: expected a few levels of YAML, got hundreds, or an alias of '
                          'itself') from error


def _build(loader: yaml.SafeLoader, node: yaml.Node, file: str, path: str) -> _Place:
    place = _Place(None, file, node.start_mark.line + 1, path)
    if isinstance(node, yaml.SequenceNode):
        place.value = [_build(loader, part, file, f'{path}[{number}]')
                       for number, part in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        place.value = {}
        loader.flatten_mapping(node)
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            part = _build(loader, value_node, file, f'{path}.{key}'.lstrip('.'))
            part.line = key_node.start_mark.line + 1
            if key in place.value:
                part.fail('every key once', f'{key!r} twice')
            place.value[key] = part
    else:
        place.value = loader.construct_object(node)
    return place
