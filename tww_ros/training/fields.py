"""A JSON document whose values know where they stand, so that messages can name the place.

In: a JSON text and the name of its file. Out: Fields. A value that is missing or not as expected
raises a DatasetError: `data_000012.json: conversations[3].value: expected a text, got 7`.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from tww_ros.errors import DatasetError


class Field:
    """A value of a JSON document that knows where it stands, for messages."""

    def __init__(self, value: Any, file: str, path: str = '') -> None:
        self.value = value
        self.file = file
        self.path = path

    def fail(self, expected: str, got: str = '', hint: str = '') -> NoReturn:
        """Raise a DatasetError about this place."""
        where = f'{self.file}: {self.path}' if self.path else self.file
        got = got or shown(self.value)
        raise DatasetError(f'{where}: expected {expected}, got {got}{hint and f"; {hint}"}')

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def __getitem__(self, key: str) -> Field:
        place = Field(None, self.file, f'{self.path}.{key}' if self.path else key)
        if not isinstance(self.value, dict):
            self.fail('an object')
        if key not in self.value:
            place.fail('a value', got='none', hint='add it')
        place.value = self.value[key]
        return place

    def mapping(self, known: tuple[str, ...] = ()) -> dict[str, Any]:
        """The object itself; with `known`, one that has no other keys."""
        if not isinstance(self.value, dict):
            self.fail('an object')
        for key in self.value:
            if known and key not in known:
                self[key].fail(f'one of the keys {", ".join(known)}', got=f'{key!r}')
        return self.value

    def items(self, count: int | None = None, why: str = '') -> list[Field]:
        """The places of an array's items."""
        if not isinstance(self.value, list):
            self.fail('an array')
        if count is not None and len(self.value) != count:
            self.fail(f'{count} items, {why}' if why else f'{count} items',
                      got=f'{len(self.value)}')
        return [Field(value, self.file, f'{self.path}[{number}]')
                for number, value in enumerate(self.value)]

    def text(self, empty: bool = False) -> str:
        """A string; with some words in it unless `empty`."""
        if not isinstance(self.value, str) or not (empty or self.value.strip()):
            self.fail('a text' if empty else 'a text that is not empty')
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number of that range."""
        value = self.value
        if (isinstance(value, bool) or not isinstance(value, (int, float))
                or not -1e15 < value < 1e15 or not low <= value <= high):
            self.fail(f'a number{_range(low, high)}')
        return float(value)

    def whole(self, low: int = 0, high: float = math.inf) -> int:
        """An integer of that range."""
        if (isinstance(self.value, bool) or not isinstance(self.value, int)
                or not low <= self.value <= high):
            self.fail(f'an integer{_range(low, high)}')
        return self.value

    def flag(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            self.fail('true or false')
        return self.value


def load_json(text: str, file: str) -> Field:
    """The root of a JSON text. Raises DatasetError with line and column."""
    try:
        return Field(json.loads(text), file)
    except json.JSONDecodeError as error:
        raise DatasetError(f'{file}: line {error.lineno} column {error.colno}: expected JSON, got '
                           f'something else ({error.msg}); the file may be cut off') from error
    except RecursionError as error:
        raise DatasetError(f'{file}: expected objects and arrays within a few others, got '
                           'hundreds; this is no data set') from error


def _range(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f' from {low:g} to {high:g}'
    return f' of at least {low:g}' if math.isfinite(low) else ''


def shown(value: Any, most: int = 80) -> str:
    """A value as JSON, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f'{text[:most]}…'
