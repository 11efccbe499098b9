"""The picture of the tabletop demo: a row per question, with what the answer was based on.

In: SheetRows. Out: a Pillow image to `save('tww_demo.png')`. It only draws.

    ┌──────────┬────────────────────────────┬───────────┬───────────┬───────────┐
    │ when it  │ question, answer, truth,   │ segment   │ segment   │ segment   │
    │ was asked│ reasoning, times           │ and note  │ and note  │ and note  │
    └──────────┴────────────────────────────┴───────────┴───────────┴───────────┘
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
RIGHT, WRONG, UNJUDGED = 'right', 'wrong', 'not judged'

_PAPER, _CARD, _LINE = (238, 240, 243), (255, 255, 255), (216, 220, 226)
_INK, _FAINT = (28, 32, 38), (104, 112, 124)
_COLOURS: dict[str, Colour] = {RIGHT: (24, 138, 84), WRONG: (204, 52, 52),
                               UNJUDGED: (150, 128, 40)}
_MARGIN, _PAD, _RADIUS, _BAR = 24, 14, 10, 6
_PICTURE, _THUMB, _WORDS, _PROOF, _PROOFS = 168, 100, 400, 206, 3
_WIDTH = 2 * (_MARGIN + _PAD) + _BAR + _PICTURE + _WORDS + _PROOFS * _PROOF + 4 * _PAD
_TITLE, _TEXT, _SMALL = 26, 16, 12
_COLUMNS = (('seen when it was asked', _PICTURE), ('question, answer, truth', _WORDS),
            ('what the answer looked at: segments, their share of the attention, the notes that '
             'were written about them', _PROOF))


@dataclass(frozen=True, eq=False)
class Proof:
    """A segment of the evidence: its frames (uint8 [H, W, 3]), times and share, its note."""

    frames: Sequence[np.ndarray]
    caption: str
    note: str


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One question. verdict: RIGHT, WRONG or UNJUDGED; picture: the newest frame that was seen."""

    when: str
    picture: np.ndarray
    question: str
    choices: str
    answer: str
    truth: str
    verdict: str
    reasoning: str
    detail: str
    proofs: Sequence[Proof]


def draw_sheet(title: str, subtitle: str, rows: Sequence[SheetRow]) -> Image.Image:
    """All rows below each other."""
    cards = [_card(row) for row in rows]
    top = _MARGIN + 2 * _TITLE + 3 * _TEXT
    height = top + sum(card.height + _PAD for card in cards) + _MARGIN - _PAD
    sheet = Image.new('RGB', (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _INK, _font(_TITLE, bold=True))
    draw.text((_MARGIN, _MARGIN + _TITLE + 10), subtitle, _FAINT, _font(_TEXT - 2))
    left = _MARGIN + _BAR + _PAD
    for column, width in _COLUMNS:
        draw.text((left, top - _SMALL - 8), column, _FAINT, _font(_SMALL))
        left += width + _PAD
    for card in cards:
        sheet.paste(card, (_MARGIN, top))
        top += card.height + _PAD
    return sheet


def _card(row: SheetRow) -> Image.Image:
    words = _words(row)
    proofs = [_proof(proof) for proof in row.proofs[:_PROOFS]]
    inside = max(_PICTURE, words.height, *(proof.height for proof in proofs))
    size = (_WIDTH - 2 * _MARGIN, inside + 2 * _PAD)
    card = Image.new('RGB', size, _PAPER)
    draw = ImageDraw.Draw(card)
    right, bottom = size[0] - 1, size[1] - 1
    draw.rounded_rectangle((0, 0, right, bottom), _RADIUS, _COLOURS[row.verdict])
    draw.rounded_rectangle((_BAR, 0, right, bottom), _RADIUS, _CARD, _LINE)
    left = _BAR + _PAD
    card.paste(_tagged(row.picture, _PICTURE, row.when), (left, _PAD))
    left += _PICTURE + _PAD
    card.paste(words, (left, _PAD))
    left += _WORDS + _PAD
    for proof in proofs:
        card.paste(proof, (left, _PAD))
        left += _PROOF + _PAD
    return card


def _words(row: SheetRow) -> Image.Image:
    colour = _COLOURS[row.verdict]
    page = _Page(_WORDS)
    page.write(row.question, _TEXT, _INK, bold=True)
    page.write(row.choices, _SMALL, _FAINT)
    page.space(4)
    page.write(row.answer, _TEXT + 2, colour, bold=True, verdict=row.verdict)
    page.write(row.truth, _TEXT - 2, _INK)
    page.space(4)
    page.write(row.reasoning, _SMALL, _FAINT)
    page.write(row.detail, _SMALL, _FAINT)
    return page.image()


def _proof(proof: Proof) -> Image.Image:
    page = _Page(_PROOF)
    for column, frame in enumerate(proof.frames):
        page.paste(_tagged(frame, _THUMB), column * (_THUMB + _PROOF - 2 * _THUMB))
    page.space(_THUMB + 6)
    page.write(proof.caption, _SMALL, _INK, bold=True)
    page.write(proof.note, _SMALL, _FAINT)
    return page.image()


class _Page:
    """Words and pictures from top to bottom on a strip of fixed width."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._top = 0
        self._image = Image.new('RGB', (width, 600), _CARD)
        self._draw = ImageDraw.Draw(self._image)

    def space(self, height: int) -> None:
        self._top += height

    def paste(self, picture: Image.Image, left: int) -> None:
        self._image.paste(picture, (left, self._top))

    def write(self, text: str, size: int, colour: Colour, *, bold: bool = False,
              verdict: str = '') -> None:
        font, left = _font(size, bold=bold), 0
        if verdict in (RIGHT, WRONG):
            self._mark(verdict, size, colour)
            left = size + 6
        for line in _wrap(text, font, self._width - left):
            self._draw.text((left, self._top), line, colour, font)
            self._top += size + 5

    def image(self) -> Image.Image:
        return self._image.crop((0, 0, self._width, min(self._top, self._image.height)))

    def _mark(self, verdict: str, size: int, colour: Colour) -> None:
        """A tick or a cross, drawn: not every font has them."""
        strokes = ([((0.1, 0.6), (0.4, 0.9), (0.95, 0.2))] if verdict == RIGHT else
                   [((0.15, 0.2), (0.85, 0.9)), ((0.15, 0.9), (0.85, 0.2))])
        for stroke in strokes:
            self._draw.line([(x * size, self._top + y * size) for x, y in stroke], colour, 3,
                            'curve')


def _tagged(frame: np.ndarray, size: int, tag: str = '') -> Image.Image:
    """A square picture, with a few words in its corner."""
    picture = Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS)
    if tag:
        font, draw = _font(_SMALL, bold=True), ImageDraw.Draw(picture)
        draw.rectangle((0, size - _SMALL - 8, draw.textlength(tag, font) + 12, size), _INK)
        draw.text((6, size - _SMALL - 5), tag, _CARD, font)
    return picture


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
          width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f'{lines[-1]} {word}' if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@functools.cache
def _font(size: int, *, bold: bool = False) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(f'DejaVuSans{"-Bold" if bold else ""}.ttf', size)
    except OSError:                              # Pillow's own font has Latin letters only
        return ImageFont.load_default(size)
