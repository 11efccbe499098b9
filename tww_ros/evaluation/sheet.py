"""Some questions as one picture: the frame then, the question, the answer in green or red, truth.

In: outcomes with the plans of their streams. Out: a Pillow image to save. Half of the tiles are
wrong answers if there are as many: they are what one wants to look at.
"""

from __future__ import annotations

import functools
import random
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from tww_ros.errors import EvaluationError
from tww_ros.evaluation.protocol import StreamPlan
from tww_ros.evaluation.runner import Outcome
from tww_ros.world.render import Renderer

PAPER, INK, FAINT = (250, 250, 248), (30, 30, 35), (110, 110, 118)
GREEN, RED = (20, 130, 60), (200, 40, 40)
COLUMNS, TILES = 6, 24
PICTURE_PX, TEXT_PX, LINES, MARGIN_PX = 216, 13, 9, 12
LINE_PX = TEXT_PX + 4


def draw_sheet(outcomes: Sequence[Outcome], plans: Sequence[StreamPlan],
               tiles: int = TILES) -> Image.Image:
    """The same outcomes give the same picture."""
    chosen = choose(outcomes, tiles)
    if not chosen:
        raise EvaluationError('expected answers for the contact sheet, got none; run the row '
                              '"single"')
    high_px = PICTURE_PX + LINES * LINE_PX + 2 * MARGIN_PX
    columns = min(COLUMNS, len(chosen))
    sheet = Image.new('RGB', (columns * (PICTURE_PX + MARGIN_PX) + MARGIN_PX,
                              -(-len(chosen) // columns) * high_px + MARGIN_PX), PAPER)
    for index, outcome in enumerate(chosen):
        row, column = divmod(index, columns)
        _tile(sheet, MARGIN_PX + column * (PICTURE_PX + MARGIN_PX), MARGIN_PX + row * high_px,
              outcome, plans[outcome.stream])
    return sheet


def choose(outcomes: Sequence[Outcome], tiles: int) -> list[Outcome]:
    """Right and wrong ones, half each while there are enough, in the order they were asked in."""
    rng = random.Random(0)
    numbered = list(enumerate(outcomes))
    rng.shuffle(numbered)
    wrong = [pair for pair in numbered if not pair[1].right]
    right = [pair for pair in numbered if pair[1].right]
    count = min(len(wrong), max(tiles // 2, tiles - len(right)))
    return [outcome for _, outcome in
            sorted(wrong[:count] + right[:tiles - count], key=lambda pair: pair[0])]


def _tile(sheet: Image.Image, left: int, top: int, outcome: Outcome, plan: StreamPlan) -> None:
    colour = GREEN if outcome.right else RED
    made, planned = outcome.planned.question, outcome.planned
    picture = Image.fromarray(Renderer(plan.episode, PICTURE_PX).frame(outcome.at_s))
    sheet.paste(picture, (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle([left - 2, top - 2, left + PICTURE_PX + 1, top + PICTURE_PX + 1],
                   outline=colour, width=3)
    back = '' if planned.distance is None else f', proof {planned.distance} segments back'
    parts = [(f'{outcome.at_s:.1f} s, {made.kind}{back}', FAINT), (made.text, INK)]
    if made.choices:
        parts.append((' | '.join(made.choices), FAINT))
    given = outcome.text or f'no answer {outcome.failed}'
    sure = f' ({outcome.top:.0%})' if outcome.probabilities else ''
    parts.append((f'{"✓" if outcome.right else "✗"} {given}{sure}', colour))
    if not outcome.right:
        parts.append((f'truth: {made.answer}', INK))
    if outcome.reasoning:
        parts.append((outcome.reasoning, FAINT))
    letters = int(PICTURE_PX / _font().getlength('n'))
    lines = [(line, ink) for text, ink in parts for line in textwrap.wrap(text, letters)]
    for number, (line, ink) in enumerate(lines[:LINES]):
        draw.text((left, top + PICTURE_PX + 6 + number * LINE_PX), line, ink, _font())


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype('DejaVuSans.ttf', TEXT_PX)
    except OSError:                              # Pillow's own font has Latin letters only
        return ImageFont.load_default(TEXT_PX)
