"""The page of a memory, in a real browser: it finds, links and draws what the memory holds.

Chromium is run without a window; what its scripts made of the page is compared with the store.
Without Chromium on the PATH only the file itself is looked at.
"""

import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from memory.filled import S, fill_from_table, segment
from PIL import Image

from tww_ros.memory.report import MOST_PICTURES, choose_pictures, write_report
from tww_ros.memory.store import Store
from tww_ros.memory.store_schema import StoredAnswer, StoredNote
from tww_ros.memory.thumbnail import encode_thumbnail

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser',
                                                'google-chrome'))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason='no chromium or google-chrome on the PATH')
NASTY = '</script><script>document.title="taken"</script><img src=x onerror="alert(1)">'


@pytest.fixture(scope='module')
def store():
    """24 segments of the tabletop with 4 answers and an episode, and one text that is no HTML."""
    made = Store.in_memory()
    fill_from_table(made, segments=24)
    made.add_segment(segment(24, camera='rear', start_s=96))
    made.add_note(StoredNote(24, f'naïve café {NASTY}'))
    made.add_answer(StoredAnswer(f'Why {NASTY}?', 'so', 99 * S, 99 * S, session='b',
                                 evidence=((24, 0.5), (999, 0.5))))
    return made


@pytest.fixture(scope='module')
def page(store, tmp_path_factory):
    file = tmp_path_factory.mktemp('report') / 'page with space.html'
    made = write_report(store, file, 'Table & <chairs>')
    assert (made.segments, made.answers, made.pictures, made.pictures_left_out) == (25, 5, 24, 0)
    return file


def dom(page, tmp_path, fragment=''):
    """The page as Chromium has it when its scripts have run."""
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
               '--no-first-run', '--disable-background-networking', '--disable-component-update',
               '--disable-sync', f'--user-data-dir={tmp_path / "profile"}',
               '--window-size=1300,900', '--dump-dom', f'{page.as_uri()}{fragment}']
    text = subprocess.run(command, capture_output=True, text=True, timeout=100,
                          check=True).stdout
    root = re.search('<html[^>]*>', text)[0]
    assert 'data-ready="yes"' in root and 'data-error' not in root, root
    return text.partition('<footer')[0]


def shown(text, section):
    """What a reader sees of the cards of a section: their texts."""
    part = re.search(f'<section id="{section}".*?</section>', text, re.DOTALL)[0]
    cards = re.findall('<article.*?</article>', part, re.DOTALL)
    return [html.unescape(re.sub('<[^>]*>', ' ', card)) for card in cards]


def data_of(page):
    text = page.read_text(encoding='utf-8')
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', text,
                                re.DOTALL)[1])


def test_one_file_that_needs_nothing_else(page):
    text = page.read_text(encoding='utf-8')
    rest = re.sub(r'"pictures":{[^}]*}', '', text)
    assert 'http:' not in rest and 'https:' not in rest and '//cdn' not in rest
    assert re.findall(r'<link|src="|@import|url\(', rest.replace('src=x', '')) == []
    assert "default-src 'none'" in text and '{{' not in text
    assert text.count('</script>') == 3 and '<title>Table &amp; &lt;chairs&gt;</title>' in text


def test_the_data_is_the_memory(page, store):
    data = data_of(page)
    assert [row[0] for row in data['segments']] == [each.id for each in store.segments()]
    notes = {note.segment_id: note.text for note in store.notes() if note.kind == 'note'}
    assert {row[0]: row[7] for row in data['segments']} == notes
    assert [row[0] for row in data['answers']] == [each.question for each in store.answers()]
    assert data['cameras'] == ['rear', 'table'] and data['dated'] is False
    assert data['segments'][1][3:5] == [4000, 7000]
    assert set(data['pictures']) == {str(number) for number in range(24)}


@browser
def test_the_page_shows_all_of_it(page, store, tmp_path):
    text = dom(page, tmp_path)
    notes, answers = shown(text, 'notes'), shown(text, 'answers')
    assert len(notes) == 26 and len(answers) == 5
    for note in store.notes():
        assert any(note.text in card for card in notes), note
    for answer in store.answers():
        card, = (card for card in answers if answer.question in card)
        assert answer.answer in card and answer.reasoning in card
        assert all(choice in card for choice in answer.choices)
    assert '<title>Table &amp; &lt;chairs&gt;</title>' in text and 'alert(1)' in text
    assert '<img src="x"' not in text and '#999' in answers[-1]
    # Drawn: the canvas has taken its height, of two cameras, and the range is told.
    assert re.search(r'<canvas[^>]*height: 2\d\dpx', text)
    assert re.search(r'<span id="range">0:00 – 1:38</span>', text)


@browser
def test_search_finds_notes_and_answers(page, store, tmp_path):
    words = next(note.text for note in store.notes() if 'put' in note.text).split()[-5:-2]
    text = dom(page, tmp_path, f'#search={"%20".join(words).upper()}')
    wanted = [note.text for note in store.notes()
              if all(word in note.text for word in words)]
    notes = shown(text, 'notes')
    assert wanted and len(notes) == len(wanted) < 26
    for note in wanted:
        assert any(note.split() == card.split()[-len(note.split()):] for card in notes)
    found = [answer for answer in store.answers() if all(word in ' '.join(
        [answer.question, answer.answer, answer.reasoning, *answer.choices]).lower()
        for word in words)]
    assert len(shown(text, 'answers')) == len(found)
    count = re.search('<output id="count">(.*?)</output>', text)[1]
    assert count.startswith(f'{len(wanted)} note') and f', {len(found)} answer' in count
    assert text.count('<mark>') >= len(words)


@browser
@pytest.mark.parametrize('fragment, count', [
    ('#search=CAFE', '1 note, 0 answers'), ('#search=%5B(*%5C', '0 notes, 0 answers'),
    ('#search=%3Cscript%3E', '1 note, 1 answer'), ('#search=rear', '1 note, 0 answers')])
def test_search_takes_any_text(page, tmp_path, fragment, count):
    assert f'<output id="count">{count}</output>' in dom(page, tmp_path, fragment)


@browser
def test_a_link_to_a_segment_marks_it(page, tmp_path):
    text = dom(page, tmp_path, '#segment=7')
    assert re.findall('<article class="([^"]*)" id="segment-7"', text)[0].endswith(' chosen')
    assert text.count(' chosen"') == 1


@browser
def test_ten_thousand_segments_are_a_small_page(tmp_path):
    """And only some of the cards exist: the rest is made when it is scrolled to."""
    picture = encode_thumbnail(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    made = Store.in_memory()
    with made.transaction():
        for number in range(10_000):
            made.add_segment(segment(number, camera=('front', 'rear')[number % 2]), picture)
            made.add_note(StoredNote(number, f'note {number} ' + 'about something ' * 8))
        made.add_answer(StoredAnswer('?', '!', 5 * S, 5 * S, evidence=((7_777, 1.0),)))
    file = tmp_path / 'page.html'
    report = write_report(made, file, 'long')
    assert report.pictures == MOST_PICTURES and report.pictures_left_out == 10_000 - MOST_PICTURES
    assert file.stat().st_size < 20e6 and '7777' in data_of(file)['pictures']
    text = dom(file, tmp_path, '#segment=7777')
    assert 'id="segment-7777"' in text and 50 < text.count('<article') < 500
    assert '6,000 pictures were left out' in text


@browser
@pytest.mark.parametrize('segments', [0, 1])
def test_almost_nothing_to_show(tmp_path, segments):
    made = Store.in_memory()
    for number in range(segments):
        made.add_segment(segment(number, start_s=1_700_000_000))
    write_report(made, tmp_path / 'page.html', 'new')
    text = dom(tmp_path / 'page.html', tmp_path)
    assert len(shown(text, 'notes')) == segments
    assert ('Nothing has been remembered yet.' in text) == (segments == 0)


def test_pictures_are_thinned_out_evenly_and_evidence_stays():
    answers = [StoredAnswer('?', '!', 0, 0, evidence=((13, 0.1), (500, 0.2)))]
    chosen = choose_pictures(range(1_000), set(range(0, 1_000, 1)) - {500}, answers, 101)
    assert len(set(chosen)) == 101 and 13 in chosen and 500 not in chosen
    gaps = np.diff(sorted(set(chosen) - {13}))
    assert gaps.min() >= 9 and gaps.max() <= 12
    assert choose_pictures(range(5), {1, 3}, answers, 101) == [1, 3]


def test_large_and_broken_pictures(tmp_path):
    made = Store.in_memory()
    large = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(large, 'JPEG')
    made.add_segment(segment(0), large.getvalue())
    made.add_segment(segment(1), b'\xff\xd8' + bytes(9_000))
    write_report(made, tmp_path / 'page.html', 'x')
    pictures = data_of(tmp_path / 'page.html')['pictures']
    assert set(pictures) == {'0'} and len(pictures['0']) <= 4_096


@pytest.mark.parametrize('shape', [(480, 640, 3), (8, 2_000, 3), (1, 1, 3), (160, 160, 3)])
def test_thumbnails_are_small_and_like_the_image(shape):
    rng = np.random.default_rng(2)
    image = np.full(shape, 200, np.uint8)
    image[:, :shape[1] // 2] = (200, 30, 30)
    image += rng.integers(0, 20, shape, np.uint8)
    data = encode_thumbnail(image)
    small = np.asarray(Image.open(io.BytesIO(data)))
    assert len(data) <= 3_072 and max(small.shape) <= 160
    if min(shape[:2]) > 1:
        assert abs(small[:, -1].mean() - 210) < 25
        assert small[0, 0, 0] > 150 > 100 > small[0, 0, 1]
