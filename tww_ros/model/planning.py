"""Plan of a packed step: which queries meet which keys, worked out once for all layers.

In: the spans of a step with their views. Out: rows, groups, units, and the numbers on the device
that a backend (`model.attending`) needs. No scores are computed here.

    row      one token's query at one shift: a token that sees parts at three shifts has three
    unit     neighbouring tokens of one block, and all rows that attend to them
    result   what one row gets from one unit; a token's results are joined by log-sum-exp
    group    spans that are attended to together, and their units

Short spans (decoding, mostly) are one group: the keys of a block that several sessions see are
read once, however many they are and wherever each of them sees the block. A long span is a group
of its own. Rows that meet quantized blocks come last, because they are turned as these blocks are.

    letters   N tokens of the step   R rows   n tokens of a group   U units that one token sees
              P results of a group   r rows of one unit   K keys of one unit   D head size
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tww_ros.memory.quantization import Block, QuantizedBlock
from tww_ros.memory.view import Part, View
from tww_ros.model.device import send
from tww_ros.model.joining import Page
from tww_ros.model.positions import MRope
from tww_ros.model.run import Span

# Spans of so many tokens at most are attended to together.
SHORT_TOKENS = 8
# Of a quantized block, so many keys' numbers are in full precision at a time: on the CPU what its
# cache holds, on a GPU what keeps it busy.
TILE_NUMBERS = {'cpu': 1 << 18, 'cuda': 1 << 22}
Table = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[['StepPlan', torch.Tensor, int, float], torch.Tensor]


@dataclass(frozen=True)
class Member:
    """A span that sees a unit: its number in the step, the shift, and the part of its view."""

    span: int
    shift: int
    part: int


@dataclass
class Unit:
    """Tokens `first` to `last` of a block, and who attends to them, with which run of rows.

    square: the tokens are the rows' own of this step, so that each sees those up to itself.
    """

    block: Block | Page
    first: int
    last: int
    square: bool
    members: list[Member]
    rows: int = 0

    @property
    def turned(self) -> bool:
        """Whether keys and values are in the quantizer's basis, and queries must be too."""
        return isinstance(self.block, QuantizedBlock)

    @property
    def row_key(self) -> tuple:
        """The same for units that can share their rows."""
        return self.turned, *((member.span, member.shift) for member in self.members)


@dataclass
class PageMass:
    """Pages that the same spans see: their parts' attention mass is worked out key by key.

    tokens: int64 [r], of their rows, within the group; None when they are the group's.
    """

    units: list[Unit]
    tokens: torch.Tensor | None


@dataclass
class Group:
    """Spans that are attended to together; units from `turned` on are quantized.

    tokens: int64 [n], in the step. results: int64 [n · U], which results are joined for each
    token, P where there are fewer than U; None when they lie in that order. slots: int64, where in
    the step's mass each of `results` counts, then each key of `pages` for each of their rows; None
    when nobody asks. Of a long span only the last token's mass counts.
    """

    long: bool
    units: list[Unit]
    turned: int
    tokens: torch.Tensor
    results: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    pages: list[PageMass] = field(default_factory=list)


@dataclass
class SpanPlan:
    """A span, where its tokens lie in the step, and where its mass does (0: it asks for none).

    visual: bool [T], of the tokens whose keys are summed up.
    """

    span: Span
    first: int
    last: int
    mass_at: int = 0
    visual: torch.Tensor | None = None


@dataclass
class StepPlan:
    """All spans of one packed step, and the backend that attends.

    row_tokens: int64 [R]; row_table and key_table: cos and signed sin, [R, 1, D] and [N, D]; rows
    from `turned` on meet quantized blocks. row_counts: of the runs of rows, which units share.
    mass: float32, one number for each part of each span that asks, summed over layers; the first
    is for what nobody asks for.
    """

    spans: list[SpanPlan]
    groups: list[Group]
    row_tokens: torch.Tensor
    row_counts: list[int]
    row_table: Table
    key_table: Table
    turned: int
    mass: torch.Tensor
    rope: MRope
    attend: Attend

    def add_mass(self) -> None:
        """Hand the attention mass to the spans that asked for it."""
        for place in self.spans:
            if place.mass_at:
                parts = len(place.span.view.parts) + 1
                place.span.mass[:parts] += self.mass[place.mass_at:place.mass_at + parts]


@dataclass
class _Rows:
    """tokens: of every row; counts: of every run of rows; shifts, each of so many rows as
    shift_counts says; turned: the first row that meets quantized blocks."""

    tokens: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    shift_counts: list[int] = field(default_factory=list)
    turned: int = 0


def plan_step(spans: Sequence[Span], rope: MRope, dtype: torch.dtype, device: torch.device,
              attend: Attend,
              parts_of: Callable[[View], Sequence[Part]] = lambda view: view.parts) -> StepPlan:
    """The plan of one step; makes room in the spans' blocks. parts_of: joins a view's parts."""
    places, first, slots = [], 0, 1
    for span in spans:
        place = SpanPlan(span, first, first + len(span.run))
        span.block.reserve(len(span.run))
        if span.mass is not None:
            place.mass_at, slots = slots, slots + len(span.view.parts) + 1
        if span.summary is not None and span.run.visual is not None:
            place.visual = torch.from_numpy(span.run.visual).to(device)
        places.append(place)
        first = place.last
    kinds = [len(span.run) > SHORT_TOKENS for span in spans]
    chosen = [[number] for number, long in enumerate(kinds) if long]
    if not all(kinds):
        chosen.append([number for number, long in enumerate(kinds) if not long])
    units = [_units(places, numbers, parts_of) for numbers in chosen]
    rows = _lay_rows(places, [unit for some in units for unit in some])
    groups = [_group(places, numbers, some, device)
              for numbers, some in zip(chosen, units, strict=True)]
    positions = np.concatenate([span.run.positions for span in spans], axis=1)  # [3, N]
    tokens = np.array(rows.tokens, np.int64)                                    # [R]
    cos, sin = rope.turns(positions, tokens, np.array(rows.shifts), np.array(rows.shift_counts),
                          dtype)                                                # [R + N, D]
    count = len(tokens)
    return StepPlan(places, groups, send(tokens, device), rows.counts,
                    (cos[:count, None], sin[:count, None]), (cos[count:], sin[count:]),
                    rows.turned, torch.zeros(slots, device=device), rope, attend)


def _units(places: list[SpanPlan], numbers: list[int],
           parts_of: Callable[[View], Sequence[Part]]) -> list[Unit]:
    """What some spans attend to, each piece of a block once; quantized ones last.

    A view that holds a block several times has as many pieces of it.
    """
    seen: dict[tuple, list[Member]] = {}
    for number in numbers:
        span, at = places[number].span, 0
        times: Counter[Block | Page] = Counter()
        for part in parts_of(span.view):
            block, member = part.block, Member(number, part.shift, at)
            at += len(block.lengths) if isinstance(block, Page) else 1
            step = _tile_tokens(block) if isinstance(block, QuantizedBlock) else part.length
            for first in range(0, part.length, max(1, step)):
                last = min(first + step, part.length)
                piece = block, first, last, False, times[block]
                seen.setdefault(piece, []).append(member)
            times[block] += 1
        old, count, own = span.block.length, len(span.run), [Member(number, 0, at)]
        if count == 1:
            seen[span.block, 0, old + 1, False, 0] = own
        else:
            if old:
                seen[span.block, 0, old, False, 0] = own
            seen[span.block, old, old + count, True, 0] = own
    return sorted((Unit(*piece, members) for (*piece, _), members in seen.items()),
                  key=lambda unit: unit.turned)


def _tile_tokens(block: QuantizedBlock) -> int:
    """Of a block, that are read at once."""
    shape = block.shape
    return max(1, TILE_NUMBERS[shape.device.type] // (shape.kv_heads * shape.head_dim))


def _lay_rows(places: list[SpanPlan], units: list[Unit]) -> _Rows:
    """Give every unit its run of rows; units that can share one do."""
    rows, known = _Rows(), {}
    for unit in sorted(units, key=lambda unit: unit.turned):
        key = unit.row_key
        if key not in known:
            known[key] = len(rows.counts)
            before = len(rows.tokens)
            for member in unit.members:
                place = places[member.span]
                rows.tokens += range(place.first, place.last)
                rows.shifts.append(member.shift)
                rows.shift_counts.append(place.last - place.first)
            rows.counts.append(len(rows.tokens) - before)
            if not unit.turned:
                rows.turned = len(rows.tokens)
        unit.rows = known[key]
    return rows


def _group(places: list[SpanPlan], numbers: list[int], units: list[Unit],
           device: torch.device) -> Group:
    """Index numbers of one group."""
    place_of, count = {}, 0
    for number in numbers:
        place_of[number], count = count, count + places[number].last - places[number].first
    long = len(numbers) == 1 and count > SHORT_TOKENS
    asked = any(places[number].mass_at for number in numbers)
    # Of each token: its results, and the slot of each.
    results: list[list[int]] = [[] for _ in range(count)]
    slots: list[list[int]] = [[] for _ in range(count)]
    pages: dict[tuple[int, ...], list[Unit]] = {}
    made = 0
    for unit in units:
        is_page = isinstance(unit.block, Page)
        for member in unit.members:
            place, first = places[member.span], place_of[member.span]
            tokens = place.last - place.first
            slot = place.mass_at + member.part if place.mass_at and not is_page else 0
            slots[first + tokens - 1].append(slot)
            if not long:
                for token in range(tokens):
                    results[first + token].append(made + token)
                for token in range(tokens - 1):
                    slots[first + token].append(0)
            made += tokens
        if asked and is_page:
            pages.setdefault(tuple(member.span for member in unit.members), []).append(unit)
    group = Group(long, units, sum(not unit.turned for unit in units),
                  send(np.concatenate([np.arange(places[number].first, places[number].last)
                                       for number in numbers]), device))
    if long:
        slots = slots[-1:]
    elif count > 1:
        most = max(map(len, results))
        for token in range(count):
            missing = most - len(results[token])
            results[token] += [made] * missing
            slots[token] += [0] * missing
        group.results = send(np.array(results, np.int64).reshape(-1), device)
    if asked:
        found = [np.array(slots, np.int64).reshape(-1)]
        for spans, some in pages.items():
            rows = [token for number in spans for token in range(
                place_of[number], place_of[number] + places[number].last - places[number].first)]
            index = None if long or rows == list(range(count)) else np.array(rows, np.int64)
            group.pages.append(PageMass(some, None if index is None else send(index, device)))
            found.append(_page_slots(places, some, long))
        group.slots = send(np.concatenate(found), device)
    return group


def _page_slots(places: list[SpanPlan], units: list[Unit], long: bool) -> np.ndarray:
    """The slot of each key of some pages, for each row: int64 [r · K], K of all of them."""
    columns = []
    for unit in units:
        rows = []
        for member in unit.members:
            place = places[member.span]
            slots = np.zeros((1 if long else place.last - place.first, unit.last), np.int64)
            if place.mass_at:
                slots[-1] = place.mass_at + member.part + unit.block.part_of_token
            rows.append(slots)
        columns.append(np.concatenate(rows))
    return np.concatenate(columns, axis=1).reshape(-1)
