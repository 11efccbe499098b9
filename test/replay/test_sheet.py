"""The contact sheet shows every frame, in order, below its caption."""

import numpy as np
import pytest

from tww_ros.errors import ReplayError
from tww_ros.replay.sheet import Strip, contact_sheet
from tww_ros.types import Frame

COLOURS = [(220, 30, 30), (30, 200, 30), (30, 30, 220), (200, 200, 30), (200, 30, 200)]


def frames(colours, start=0):
    return [Frame((start + k) * 10**9, 'front', np.full((90, 160, 3), colour, np.uint8))
            for k, colour in enumerate(colours)]


def places(sheet, colour):
    """Rows and columns (of the centre) where a colour covers the sheet."""
    near = np.abs(np.asarray(sheet).astype(int) - colour).max(-1) < 8
    rows, columns = np.nonzero(near)
    return rows.mean(), columns.mean(), near.sum()


def test_frames_are_laid_out_in_reading_order():
    strips = [Strip('segment 0', frames(COLOURS[:3]), 'a note'),
              Strip('segment 1', frames(COLOURS[3:]))]
    sheet = contact_sheet(strips, title='two segments', columns=2, tile_width_px=160)
    centres = [places(sheet, colour) for colour in COLOURS]
    assert all(pixels > 0.7 * 160 * 90 for *_, pixels in centres)
    rows, columns = [c[0] for c in centres], [c[1] for c in centres]
    assert rows[0] == pytest.approx(rows[1], abs=3) and columns[0] < columns[1]
    assert rows[1] < rows[2] < rows[3] and columns[2] == pytest.approx(columns[0], abs=3)
    assert rows[3] == pytest.approx(rows[4], abs=3)


def test_caption_note_and_stamp_are_drawn():
    bare = contact_sheet([Strip('', frames(COLOURS[:1]))])
    told = contact_sheet([Strip('segment 0', frames(COLOURS[:1]), 'note ' * 100)], title='title')
    assert told.height > bare.height + 60
    ink = (np.asarray(told).astype(int).sum(-1) < 200).sum()
    assert ink > (np.asarray(bare).astype(int).sum(-1) < 200).sum() + 100
    later = contact_sheet([Strip('', frames(COLOURS[:1], start=7))], t0_ns=0)
    assert not np.array_equal(np.asarray(later), np.asarray(bare))
    same = contact_sheet([Strip('', frames(COLOURS[:1], start=7))])
    assert np.array_equal(np.asarray(same), np.asarray(bare))


def test_saved_as_png(tmp_path):
    from PIL import Image
    sheet = contact_sheet([Strip('a', frames(COLOURS))])
    sheet.save(tmp_path / 'sheet.png')
    with Image.open(tmp_path / 'sheet.png') as read:
        assert read.size == sheet.size and read.format == 'PNG'


@pytest.mark.parametrize('strips', [[], [Strip('empty', [])]])
def test_no_frames(strips):
    with pytest.raises(ReplayError, match='got none'):
        contact_sheet(strips)
