"""Notes are found as questions mean them: by all of their words and time first."""

from __future__ import annotations

import pytest
import torch

from tww_ros.memory.archive import Archive
from tww_ros.memory.block import BlockShape
from tww_ros.memory.notes import Scope
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.store import Store
from tww_ros.types import Note

SHAPE = BlockShape(1, 1, 8, torch.float32, torch.device('cpu'))
NOTES = ['put red ball back left, 1 so far', 'put blue box center, 2 so far',
         'move red ball from back left to front right', 'take blue box from center',
         'put green cone back left, 3 so far', 'cover green cone back left',
         'put blue box center left, 4 so far', 'nothing new']


@pytest.fixture
def archive():
    made = Archive(Store.in_memory(), SHAPE, None, on_disk=False)
    for number, text in enumerate(NOTES):
        record = SegmentRecord(number, number, 'front', 0, number, number)
        made.add_segment(record, None)
        made.add_note(record, Note(number, 'front', number, number, text, 3, 'stop', 0.0), None)
    return made


@pytest.mark.parametrize(('question', 'first'), [
    ('Which object was put down first?', 0),
    ('Which object was put down last?', 6),
    ('How many objects have been put down so far?', 6),
    ('Which object was put down as number 3?', 4),
    ('Where was the red ball before it was moved?', 2),
    ('Where is the red ball now?', 2),
    ('Which object was taken away last?', 3),
    ('When was the blue box put down?', 6),
    ('Where did you last see the green cone?', 5),
    ('What is under the cover at the back left?', 5),
])
def test_the_note_that_answers_comes_first(archive, question, first):
    assert archive.search(question, Scope(0), 8)[0] == first


def test_a_question_about_two_things_finds_both(archive):
    found = archive.search('Which came first, the green cone or the red ball?', Scope(0), 4)
    assert set(found) == {0, 2, 4, 5}


def test_scope_and_limit(archive):
    assert archive.search('blue box', Scope(0, until=3), 8) == [3, 1]
    assert archive.search('blue box', Scope(0, window=(0, 2)), 8) == [1]
    assert archive.search('blue box', Scope(1), 8) == []
    assert archive.search('put', Scope(0), 2) == [6, 4]
    assert archive.search('?!', Scope(0), 2) == []
