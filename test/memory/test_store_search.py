"""Notes found by words: ranked by worth, within epoch, cameras and window.

Expected: the worth of words, computed here by its formula.
"""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory.filled import IDENTITY, S, block_of, fill_from_table, put, segment

from tww_ros.errors import StoreError
from tww_ros.memory.store import Store
from tww_ros.memory.store_schema import StoredNote

NOTES = ['red ball front left', 'blue cup back right', 'red cup centre', 'red red red ball',
         'a green star', 'blue blue cup cup']


def units(text):
    words = text.split()
    return {*words, *itertools.pairwise(words)}


def worth(notes, query):
    """Sum of inverse document frequencies of the words that a note has, and of every two that
    follow each other; none twice."""
    documents = [units(note) for note in notes]
    scores = []
    for document in documents:
        score = 0.0
        for word in units(query) & document:
            having = sum(word in other for other in documents)
            score += math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        scores.append(score)
    return scores


@pytest.mark.parametrize('query', ['red', 'red cup', 'cup left red', 'blue ball red'])
def test_search_ranks_by_the_worth_of_words(query):
    store = Store.in_memory()
    for number, text in enumerate(NOTES):
        store.add_segment(segment(number))
        store.add_note(StoredNote(number, text))
    wanted = {number: score for number, score in enumerate(worth(NOTES, query)) if score}
    hits = store.search(query, limit=99)
    assert {hit.segment_id: hit.score for hit in hits} == pytest.approx(wanted)
    order = sorted(wanted, key=lambda number: (-round(wanted[number], 9), -number))
    assert [hit.segment_id for hit in hits] == order
    assert store.search(query, limit=1) == hits[:1]


def test_question_words_do_not_count_and_forms_of_words_do(store):
    for number, text in enumerate(['the cup was moved', 'where it is', 'nothing new']):
        put(store, number, text)
    assert [hit.segment_id for hit in store.search('Where did the cups move?')] == [0]
    assert [hit.segment_id for hit in store.search('where?')] == [1]
    assert store.search('?!') == store.search('') == store.search('zebra') == []


def test_a_thing_is_more_than_its_two_words():
    store = Store.in_memory()
    for number, text in enumerate(['red ball', 'red cup, blue ball', 'ball, red', 'blue cup']):
        store.add_segment(segment(number))
        store.add_note(StoredNote(number, text))
    assert [hit.segment_id for hit in store.search('the red ball')] == [0, 2, 1]


@pytest.mark.parametrize('question', ['What was taken away?', 'What did she take?',
                                      'Who took it away?'])
def test_forms_that_no_stemmer_brings_together(store, question):
    for number, text in enumerate(['red cup taken', 'she takes a cup', 'he took it', 'put it']):
        put(store, number, text)
    assert {hit.segment_id for hit in store.search(question)} == {0, 1, 2}


def test_equally_good_notes_by_age(store):
    for number, order in ((0, 2), (1, 0), (2, 1)):
        put(store, number, 'red cup', order=order)
    assert [hit.segment_id for hit in store.search('cup')] == [0, 2, 1]
    assert [hit.segment_id for hit in store.search('cup', oldest_first=True)] == [1, 2, 0]
    assert [hit.segment_id for hit in store.search('cup', until=1)] == [2, 1]


def test_search_within_epoch_cameras_and_window(store):
    for number, camera, epoch in ((0, 'a', 0), (1, 'b', 0), (2, 'a', 1), (3, 'b', 1)):
        put(store, number, 'cup', camera=camera, epoch=epoch)
    store.add_note(StoredNote(1, 'cup', 'episode', 2))

    def found(**where):
        return sorted((hit.segment_id, hit.last_id) for hit in store.search('cup', **where))

    assert found() == [(0, 0), (1, 1), (1, 2), (2, 2), (3, 3)]
    assert found(epoch=0) == [(0, 0), (1, 1), (1, 2)]
    assert found(cameras=['a']) == [(0, 0), (1, 2), (2, 2)]
    assert found(epoch=1, cameras=('b',)) == [(3, 3)]
    # Segments 1 and 2 last from 3 to 5 s and from 6 to 8 s.
    assert found(window=(5 * S, 6 * S)) == [(1, 1), (1, 2), (2, 2)]
    assert found(window=(round(8.5 * S), 9 * S)) == [(3, 3)]


TABLE = Store.in_memory()
fill_from_table(TABLE, segments=20, size_px=32, questions=False)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.sampled_from(
    ['"', '"red" NEAR ball', 'text: red', 'red*', '^red', '-red', 'red AND', '(', 'a OR b OR',
     'NOT', '\x00red\x00', '\ud800red', '{text}: x', 'red + ball', '_', '٣', 'ª', '\u0301']))
def test_no_text_breaks_the_search(text):
    assert all(hit.score > 0 and hit.text for hit in TABLE.search(text))
    assert TABLE.search(f'{text} put')[0].score > 0


def test_a_page_as_a_question():
    assert TABLE.search(' '.join(f'word{number}' for number in range(10_000)) + ' put') == []
    assert TABLE.search('put ' * 10_000) == TABLE.search('put')


def test_half_characters_are_kept_as_question_marks(store):
    store.add_segment(segment(0))
    store.add_note(StoredNote(0, 'a\ud800b'))
    assert store.notes()[0].text == 'a?b'


def test_in_memory_takes_everything_but_blocks(tmp_path):
    store = Store.in_memory()
    store.add_segment(segment(0))
    store.add_note(StoredNote(0, 'red cup'))
    with pytest.raises(StoreError, match='takes no KV blocks'):
        store.add_block(0, 'segment', block_of(0))
    assert store.remove([0]) == 1 and store.search('cup') == [] and store.nbytes > 0
    store.add_segment(segment(1))
    store.copy_to(tmp_path / 'copy')
    with Store.open(tmp_path / 'copy', IDENTITY) as kept:
        put(kept, kept.next_id)
        assert [each.id for each in kept.segments()] == [1, 2]
