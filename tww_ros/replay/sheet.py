"""Watched frames → one picture: what the model saw, segment by segment, with times and notes.

In: `Strip`s (a caption and frames), one per segment. Out: a Pillow image to `save('sheet.png')`.
It only draws; which frames were watched is for `video.segmentation` to say. For demos and docs,
where "which frames did it base this on?" is the first question that people ask.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from tww_ros.errors import ReplayError
from tww_ros.types import NS_PER_S, Frame

_PAPER, _INK, _FAINT, _LINE = (250, 250, 248), (30, 30, 35), (110, 110, 118), (205, 205, 200)
_MARGIN_PX, _GAP_PX, _TEXT_PX, _SMALL_PX = 16, 6, 16, 13


@dataclass(frozen=True)
class Strip:
    """The frames of one segment and what to write above them; text is set smaller below that."""

    caption: str
    frames: Sequence[Frame]
    text: str = ''


def contact_sheet(strips: Sequence[Strip], *, title: str = '', t0_ns: int | None = None,
                  columns: int = 8, tile_width_px: int = 160) -> Image.Image:
    """Draw the strips below each other, at most `columns` frames in a row.

    t0_ns: the stamp shown as 0.0 s; the first frame's by default.
    """
    first = next((strip.frames[0] for strip in strips if strip.frames), None)
    if first is None:
        raise ReplayError('expected frames for the contact sheet, got none; did the video end '
                          'before the first question?')
    t0_ns = first.stamp_ns if t0_ns is None else t0_ns
    width = 2 * _MARGIN_PX + columns * (tile_width_px + _GAP_PX) - _GAP_PX
    bands = [_band(strip, width, columns, tile_width_px, t0_ns) for strip in strips]
    head = _head(title, width)
    sheet = Image.new('RGB', (width, sum(b.height for b in (head, *bands)) + _MARGIN_PX), _PAPER)
    top = 0
    for part in (head, *bands):
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _head(title: str, width: int) -> Image.Image:
    lines = _wrap(title, width, _TEXT_PX + 4)
    head = Image.new('RGB', (width, _MARGIN_PX + len(lines) * (_TEXT_PX + 10)), _PAPER)
    _write(head, (_MARGIN_PX, _MARGIN_PX), lines, _TEXT_PX + 4, _INK)
    return head


def _band(strip: Strip, width: int, columns: int, tile_width_px: int, t0_ns: int) -> Image.Image:
    caption = _wrap(strip.caption, width, _TEXT_PX)
    text = _wrap(strip.text, width, _SMALL_PX)
    tiles = [_tile(frame, tile_width_px, t0_ns) for frame in strip.frames]
    rows = [tiles[start:start + columns] for start in range(0, len(tiles), columns)]
    words_px = len(caption) * (_TEXT_PX + 6) + len(text) * (_SMALL_PX + 6)
    tiles_px = sum(max(tile.height for tile in row) + _GAP_PX for row in rows)
    band = Image.new('RGB', (width, words_px + tiles_px + 2 * _MARGIN_PX), _PAPER)
    draw = ImageDraw.Draw(band)
    draw.line([(_MARGIN_PX, _GAP_PX), (width - _MARGIN_PX, _GAP_PX)], _LINE)
    top = _write(band, (_MARGIN_PX, _MARGIN_PX), caption, _TEXT_PX, _INK)
    top = _write(band, (_MARGIN_PX, top), text, _SMALL_PX, _FAINT) + _GAP_PX
    for row in rows:
        for column, tile in enumerate(row):
            band.paste(tile, (_MARGIN_PX + column * (tile_width_px + _GAP_PX), top))
        top += max(tile.height for tile in row) + _GAP_PX
    return band


def _tile(frame: Frame, width_px: int, t0_ns: int) -> Image.Image:
    height, width = frame.image.shape[:2]
    height_px = max(_TEXT_PX + 6, round(height * width_px / width))
    picture = Image.fromarray(frame.image).resize((width_px, height_px), Image.Resampling.BICUBIC)
    label = f'{(frame.stamp_ns - t0_ns) / NS_PER_S:.2f} s'
    draw = ImageDraw.Draw(picture)
    font = _font(_SMALL_PX)
    draw.rectangle([0, 0, draw.textlength(label, font) + 8, _SMALL_PX + 7], (0, 0, 0))
    draw.text((4, 2), label, (255, 255, 255), font)
    return picture


def _write(image: Image.Image, corner: tuple[int, int], lines: Sequence[str], size_px: int,
           colour: tuple[int, int, int]) -> int:
    """Draw lines below each other; returns where the next one would start."""
    left, top = corner
    draw = ImageDraw.Draw(image)
    for line in lines:
        draw.text((left, top), line, colour, _font(size_px))
        top += size_px + 6
    return top


def _wrap(text: str, width: int, size_px: int) -> list[str]:
    letter_px = _font(size_px).getlength('n')
    limit = max(8, int((width - 2 * _MARGIN_PX) / letter_px))
    return [line for part in text.splitlines() for line in textwrap.wrap(part, limit)]


@functools.cache
def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype('DejaVuSans.ttf', size_px)
    except OSError:                              # Pillow's own font has Latin letters only
        return ImageFont.load_default(size_px)
