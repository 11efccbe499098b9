"""Views against tables computed by hand, and the rule that parts tile their axis."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.view import Entry, View, lay_out

SHAPE = BlockShape(1, 1, 2, torch.float32, torch.device('cpu'))


def block(length, start, extent):
    made = KVBlock(SHAPE, start=start, capacity=length)
    made.commit(length, start + extent)
    return made


def table(view):
    """(first position in the view, tokens) of every part."""
    return [(part.block.start + part.shift, part.length) for part in view.parts]


# The source stream: header 3 tokens, R1 9 tokens on 5 positions, R2 7 on 4, R3 8 on 6.
HEADER, R1, R2, R3 = (Entry(block(*numbers), 'source', segment) for segment, *numbers in (
    (None, 3, 0, 3), (1, 9, 3, 5), (2, 7, 8, 4), (3, 8, 12, 6)))


def test_continuous_by_hand():
    """header R1 C1 R2 C2 Q1 A1 R3: one count; C1 began at 8, C2 at 14, Q1 at 17, A1 at 21."""
    c1, c2 = Entry(block(2, 8, 2), 'target', 1), Entry(block(3, 14, 3), 'target', 2)
    assert lay_out([HEADER, R1], 'continuous').start('target') == 8
    assert lay_out([HEADER, R1, c1, R2], 'continuous').start('target') == 14
    first = lay_out([HEADER, R1, c1, R2, c2], 'continuous')
    assert table(first) == [(0, 3), (3, 9), (8, 2), (10, 7), (14, 3)]
    assert [part.shift for part in first.parts] == [0, 0, 0, 2, 0]
    assert (first.next_source, first.next_target, first.tokens) == (17, 17, 24)
    q1, a1 = Entry(block(4, 17, 4), 'source'), Entry(block(2, 21, 2), 'target')
    second = lay_out([HEADER, R1, c1, R2, c2, q1, a1, R3], 'continuous')
    assert table(second)[5:] == [(17, 4), (21, 2), (23, 8)]
    assert [part.shift for part in second.parts] == [0, 0, 0, 2, 0, 0, 0, 11]
    assert second.start('source') == second.start('target') == 29
    assert [part.segment_id for part in second.parts] == [None, 1, 1, 2, 2, None, None, 3]


def test_continuous_of_another_session_by_hand():
    """The same R3 stands six positions earlier for a session without that round."""
    c1, c2 = Entry(block(2, 8, 2), 'target', 1), Entry(block(3, 14, 3), 'target', 2)
    other = lay_out([HEADER, R1, c1, R2, c2, R3], 'continuous')
    assert table(other)[-1] == (17, 8)
    assert other.parts[-1].shift == 5 and other.next_source == 23


def test_a_note_finished_after_a_round_moves_the_round_by_hand():
    """Q1 was asked before C2 was finished, at 14; later C2 stands before it, and Q1 at 17."""
    c1, c2 = Entry(block(2, 8, 2), 'target', 1), Entry(block(3, 14, 3), 'target', 2)
    q1, a1 = Entry(block(4, 14, 4), 'source'), Entry(block(2, 18, 2), 'target')
    view = lay_out([HEADER, R1, c1, R2, c2, q1, a1], 'continuous')
    assert table(view)[4:] == [(14, 3), (17, 4), (21, 2)]
    assert [part.shift for part in view.parts][4:] == [0, 3, 3]


def test_decoupled_by_hand():
    """Sources count 0 3 8 12 …, notes and answers 0 2 5 …; Q1 stands behind R2 at 12."""
    c1, c2 = Entry(block(2, 0, 2), 'target', 1), Entry(block(3, 2, 3), 'target', 2)
    first = lay_out([HEADER, R1, c1, R2, c2], 'decoupled')
    assert table(first) == [(0, 3), (3, 9), (0, 2), (8, 7), (2, 3)]
    assert [part.shift for part in first.parts] == [0] * 5
    assert (first.start('source'), first.start('target')) == (12, 5)
    q1, a1 = Entry(block(4, 12, 4), 'source'), Entry(block(6, 5, 6), 'target')
    c3 = Entry(block(2, 5, 2), 'target', 3)
    second = lay_out([HEADER, R1, c1, R2, c2, q1, a1, R3, c3], 'decoupled')
    assert table(second)[5:] == [(12, 4), (5, 6), (16, 8), (11, 2)]
    assert [part.shift for part in second.parts] == [0] * 7 + [4, 6]
    assert (second.next_source, second.next_target) == (22, 13)


def test_anchored_puts_the_sink_right_before_a_late_segment_by_hand():
    """Without R1 and R2 the header's 0 … 2 is seen at 9 … 11, before R3 at 12."""
    view = lay_out([HEADER], 'continuous').anchored(12)
    assert table(view) == [(9, 3)] and view.parts[0].shift == 9
    assert view.start('source') == 12
    with_r2 = lay_out([HEADER, R2], 'continuous').anchored(12)
    assert table(with_r2) == [(5, 3), (8, 7)]
    assert [part.shift for part in with_r2.parts] == [5, 0]
    same = lay_out([HEADER, R1, R2], 'continuous')
    assert same.anchored(12) == same


def test_an_empty_view():
    assert lay_out([], 'continuous') == View((), 0, 0)
    assert lay_out([], 'decoupled').tokens == 0


def test_a_view_is_a_snapshot_of_a_growing_block():
    growing = block(4, 0, 4)
    view = lay_out([Entry(growing, 'source')], 'continuous')
    growing.reserve(3)
    growing.commit(3, 7)
    assert view.tokens == 4 and view.next_source == 4
    assert lay_out([Entry(growing, 'source')], 'continuous').tokens == 7


@settings(max_examples=100, deadline=None)
@given(numbers=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10 ** 7), st.integers(1, 30),
                                  st.sampled_from(['source', 'target'])), max_size=12),
       scheme=st.sampled_from(['continuous', 'decoupled']))
def test_parts_tile_their_axis(numbers, scheme):
    """No gap and no overlap: sorted intervals of one axis follow each other from 0."""
    entries = [Entry(block(length, start, extent), side)
               for length, start, extent, side in numbers]
    view = lay_out(entries, scheme)
    axes = {'source': [], 'target': []}
    for entry, part in zip(entries, view.parts, strict=True):
        axis = 'source' if scheme == 'continuous' else entry.side
        first = part.block.start + part.shift
        axes[axis].append((first, first + part.block.extent))
    for axis, intervals in axes.items():
        place = 0
        for first, last in intervals:
            assert first == place
            place = last
        if scheme == 'decoupled' or axis == 'source':
            assert view.start(axis) == place
    if scheme == 'continuous':
        assert view.next_source == view.next_target
