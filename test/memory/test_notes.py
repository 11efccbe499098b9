"""Notes and episodes: what is looked through, and what of it is chosen, against brute force."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tww_ros.memory.notes import NoteBook, Scope, Told
from tww_ros.memory.record import SegmentRecord
from tww_ros.types import Note

NS = 1_000_000_000


def told(number, length=10, camera='front', epoch=0, noted=None):
    record = SegmentRecord(number, number, camera, epoch, number * NS, number * NS + NS // 2,
                           added=number + 1)
    note = Note(number, camera, record.start_ns, record.end_ns, f'note {number}', 3, 'stop', 0.0)
    made = Told(record, note, None, length, number + 1 if noted is None else noted)
    record.told = made
    return made


def episode(parts, noted, length=12):
    first, last = next(parts[0].notes), parts[-1].record
    note = Note(first.record.id, last.camera, parts[0].note.start_ns, parts[-1].note.end_ns,
                'episode', 3, 'stop', 0.0)
    return Told(last, note, None, length, noted, tuple(parts))


def filled(count=10, **options):
    book, notes = NoteBook(), [told(number, **options) for number in range(count)]
    for note in notes:
        book.add(note)
    return book, notes


def names(items):
    return [('e' if item.told.parts else 'n') + str(item.place[0])
            for item in sorted(items, key=lambda item: item.place)]


ALL = Scope(0)


def choose(book, scope=ALL, tokens=1_000, found=()):
    return names(book.choose(scope, tokens, found, lost=True, lost_found=True))


def test_an_episode_stands_for_its_notes():
    book, notes = filled()
    assert book.words == 100
    book.add(episode(notes[:4], noted=20))
    assert choose(book) == ['e3', 'n4', 'n5', 'n6', 'n7', 'n8', 'n9']
    assert book.words == 100 - 40 + 12


def test_where_an_episode_does_not_fit_the_question_its_notes_stand():
    book, notes = filled()
    book.add(episode(notes[:4], noted=20))
    both = ['n0', 'n1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7', 'n8', 'n9']
    assert choose(book, Scope(0, change=19)) == both, 'it was asked before'
    assert choose(book, Scope(0, change=20))[0] == 'e3'
    assert choose(book, Scope(0, window=(NS, 20 * NS))) == both[1:], 'of its time only a part'
    assert choose(book, Scope(0, window=(0, 3 * NS + NS))) == ['e3', 'n4']
    assert choose(book, Scope(0, until=2)) == ['n0', 'n1', 'n2']
    assert choose(book, Scope(1)) == []


def test_cameras_of_an_episode():
    book = NoteBook()
    notes = [told(number, camera='front' if number % 2 else 'back') for number in range(4)]
    for note in notes:
        book.add(note)
    book.add(episode(notes[:3], noted=9))
    assert choose(book) == ['e2', 'n3']
    assert choose(book, Scope(0, cameras=('front', 'back'))) == ['e2', 'n3']
    assert choose(book, Scope(0, cameras=('front',))) == ['n1', 'n3']


def test_episodes_of_episodes():
    book, notes = filled(8)
    first, second = episode(notes[:2], 20), episode(notes[2:4], 21)
    for each in (first, second, episode([first, second], 22)):
        book.add(each)
    assert choose(book) == ['e3', 'n4', 'n5', 'n6', 'n7']
    assert choose(book, Scope(0, change=21)) == ['e1', 'e3', 'n4', 'n5', 'n6', 'n7']
    assert choose(book, Scope(0, change=20)) == ['e1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7']
    assert [note.record.id for note in episode([first, second], 0).notes] == [0, 1, 2, 3]


def test_what_is_summed_up_next():
    book, notes = filled()
    assert book.run(tokens=100, count=4) == (), 'all fit'
    assert book.run(tokens=99, count=4) == tuple(notes[:4])
    assert book.run(tokens=99, count=0) == () and book.run(tokens=99, count=11) == ()
    while parts := book.run(tokens=30, count=3):
        assert len(parts) == 3
        book.add(episode(parts, noted=50))
    # 10 notes → 3 episodes and a note → an episode of episodes and a note.
    assert choose(book) == ['e8', 'n9'] and book.words == 22


def test_epochs_are_not_mixed_in_an_episode():
    book = NoteBook()
    notes = [told(number, epoch=number // 3) for number in range(6)]
    for note in notes:
        book.add(note)
    assert book.words == 30, 'of the newest epoch'
    assert book.run(tokens=10, count=4) == ()
    assert book.run(tokens=10, count=3) == tuple(notes[3:])


def test_what_could_not_be_summed_up_is_left_as_it_is():
    book, notes = filled(6)
    for note in book.run(tokens=10, count=3):
        note.kept = True
    assert book.run(tokens=10, count=3) == tuple(notes[3:])
    book.add(episode(notes[3:], noted=20))
    assert choose(book) == ['n0', 'n1', 'n2', 'e5'] and book.run(tokens=10, count=3) == ()


def test_forgetting_the_oldest_notes_and_then_their_episode():
    book, notes = filled(6)
    book.add(episode(notes[:3], noted=20))
    book.forget(notes[0])
    book.forget(notes[1])
    assert choose(book)[0] == 'e2', 'it still tells of the third'
    assert choose(book, Scope(0, change=19))[0] == 'n2', 'what was forgotten answers no more'
    book.forget(notes[2])
    assert choose(book) == ['n3', 'n4', 'n5'] and book.words == 30


def test_notes_that_outlive_the_end_of_their_episode():
    book, notes = filled(4)
    book.add(episode(notes[:3], noted=20))
    book.forget(notes[2])
    assert choose(book) == ['n0', 'n1', 'n3'] and book.words == 30


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
       tokens=st.integers(0, 120), found=st.lists(st.integers(0, 11), max_size=4, unique=True))
def test_choice_equals_brute_force(lengths, tokens, found):
    book = NoteBook()
    notes = [told(number, length) for number, length in enumerate(lengths)]
    for note in notes:
        book.add(note)
    wanted = [notes[number] for number in found if number < len(notes)]
    expected, left = set(), tokens
    for note in wanted:
        if left - note.length >= tokens / 2:
            left -= note.length
            expected.add(note.order)
    newest = [note for note in reversed(notes) if note.order not in expected]
    fits = itertools.takewhile(lambda total: total <= left,
                               itertools.accumulate(note.length for note in newest))
    expected |= {note.order for note, _ in zip(newest, fits, strict=False)}
    assert choose(book, tokens=tokens, found=wanted) == [f'n{order}' for order in sorted(expected)]
