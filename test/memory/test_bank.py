"""The memory bank against a brute-force bank that keeps plain lists and adds everything up."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tww_ros.config import MemoryConfig
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.block import BlockShape, KVBlock
from tww_ros.memory.notes import Scope
from tww_ros.memory.record import SegmentRecord
from tww_ros.memory.retrieval import KeySummary, QueryTap
from tww_ros.types import Note

# 512 bytes a token, so the smallest budget of 65,536 bytes holds 128 tokens.
SHAPE = BlockShape(1, 1, 64, torch.float32, torch.device('cpu'))
TOKEN_BYTES = 512
NS = 1_000_000_000


def block(tokens):
    made = KVBlock(SHAPE, capacity=tokens)
    made.commit(tokens, tokens)
    return made


def record(number, tokens=10, camera='front', epoch=0, order=None):
    """Segment `number` spans the seconds number to number + 0.5."""
    return SegmentRecord(id=number, order=number if order is None else order, camera=camera,
                         epoch=epoch, start_ns=number * NS, end_ns=number * NS + NS // 2,
                         tokens=tokens, block=block(tokens))


def note(of, text='something'):
    return Note(of.id, of.camera, of.start_ns, of.end_ns, text, 3, 'stop', 0.0)


def bank(device_tokens=10 ** 6, **options):
    return MemoryBank(MemoryConfig(device_bytes=device_tokens * TOKEN_BYTES, host_bytes=0,
                                   **options))


@dataclass
class Held:
    """One segment of the brute-force bank; tokens None: not held."""

    record: SegmentRecord
    tokens: int | None
    note_tokens: int | None = None


class Brute:
    """The rules as searches: oldest segment first, then oldest note, never the newest's."""

    def __init__(self, budget_tokens, max_segments):
        self.budget, self.max_segments, self.held = budget_tokens, max_segments, []

    def total(self):
        return sum((h.tokens or 0) + (h.note_tokens or 0) for h in self.held)

    def add(self, new):
        self.held.append(Held(new, new.block.length))
        # Room is made among those that stay.
        while len(self.held) > self.max_segments:
            self.held.pop(0)
        self._make_room()

    def attach(self, of, tokens):
        for held in self.held:
            if held.record is of:
                held.note_tokens = tokens
                self._make_room()

    def _make_room(self):
        while self.total() > self.budget:
            others = self.held[:-1]
            with_block = [h for h in others if h.tokens is not None]
            with_note = [h for h in others if h.note_tokens is not None]
            if with_block:
                with_block[0].tokens = None
            elif with_note:
                with_note[0].note_tokens = None
            else:
                return

    def resident(self, epoch, tokens, note_tokens, cameras, until, window):
        chosen = []
        for kind, budget in (('tokens', tokens), ('note_tokens', note_tokens)):
            for held in reversed(self.held):
                r, size = held.record, getattr(held, kind)
                if (size is None or r.epoch != epoch or (cameras and r.camera not in cameras)
                        or (until is not None and r.order > until)
                        or (window and (r.end_ns < window[0] or r.start_ns > window[1]))):
                    continue
                budget -= size
                if budget < 0:
                    break
                chosen.append((r.order, kind != 'tokens', r.id))
        return sorted(chosen)

    def before(self, new, tokens):
        chosen = []
        for held in reversed(self.held):
            r = held.record
            if r.camera != new.camera or r.epoch != new.epoch:
                continue
            if held.tokens is None or held.tokens > tokens:
                break
            tokens -= held.tokens
            chosen.insert(0, r.id)
        return chosen


def same(real, brute):
    """Everything that both can tell."""
    assert real.tokens == brute.total() and real.nbytes == brute.total() * TOKEN_BYTES
    held = [(h.record.id, h.tokens, h.note_tokens) for h in brute.held]
    assert held == [(h.record.id, h.record.block and h.record.block.length,
                     h.record.note_block and h.record.note_block.length) for h in brute.held]
    assert [info.id for info in real.segments()] == [h.record.id for h in brute.held]
    for info, h in zip(real.segments(), brute.held, strict=True):
        assert info.kv_bytes == ((h.tokens or 0) + (h.note_tokens or 0)) * TOKEN_BYTES
        assert info.tier == ('note' if h.tokens is None else 'device')


EVENTS = st.lists(st.one_of(
    st.tuples(st.just('segment'), st.integers(1, 90), st.sampled_from(['front', 'back'])),
    st.tuples(st.just('note'), st.integers(1, 40), st.integers(0, 6)),
    st.tuples(st.just('epoch'), st.just(0), st.just(0))), max_size=40)


@settings(max_examples=80, deadline=None)
@given(events=EVENTS, budget=st.integers(128, 500), max_segments=st.integers(1, 12),
       tokens=st.integers(16, 300), note_tokens=st.integers(0, 100),
       cameras=st.sampled_from([(), ('front',), ('front', 'back'), ('side',)]),
       until=st.one_of(st.none(), st.integers(0, 20)),
       window=st.one_of(st.none(), st.tuples(st.integers(0, 20), st.integers(0, 20)).map(
           lambda s: (min(s) * NS, max(s) * NS))))
def test_any_history_equals_brute_force(events, budget, max_segments, tokens, note_tokens, cameras,
                                        until, window):
    real, brute = bank(budget, max_segments=max_segments), Brute(budget, max_segments)
    known, epoch = [], 0
    for kind, size, extra in events:
        if kind == 'segment':
            new = record(len(known), size, extra, epoch)
            assert [e.segment_id for e in real.before(new, tokens)] == brute.before(new, tokens)
            known.append(new)
            brute.add(new)
            real.add(new)
            largest = size
        elif kind == 'note' and known:
            of = known[max(0, len(known) - 1 - extra)]
            if of.note is not None:
                continue
            brute.attach(of, size)
            real.attach_note(of, note(of), block(size))
            largest = size + (of.block.length if of.block else 0)
        elif kind == 'epoch':
            epoch += 1
            continue
        else:
            continue
        same(real, brute)
        assert real.tokens <= max(budget, largest)
    for number in range(epoch + 1):
        found = real.resident(Scope(number, cameras, window, until), tokens=tokens,
                              note_tokens=note_tokens)
        everything = real.resident(Scope(number, cameras, window, until), tokens=tokens,
                                   note_tokens=note_tokens, fetch=True)
        assert real.shows(Scope(number, cameras, window, until), tokens=tokens,
                          note_tokens=note_tokens) == bool(everything)
        expected = brute.resident(number, tokens, note_tokens, cameras, until, window)
        assert [(*item.place, item.record.id) for item in found] == expected
        for item in found:
            held = item.record.note_block if item.place[1] else item.record.block
            assert item.entry.block is held and item.entry.segment_id == item.record.id
            assert item.entry.side == ('target' if item.place[1] else 'source')


def test_the_oldest_segments_go_first_and_their_notes_stay():
    real = bank(130)
    records = [record(n, tokens=40) for n in range(5)]
    for each in records:
        real.add(each)
        real.attach_note(each, note(each, f'note {each.id}'), block(5))
    # 5 × 5 tokens of notes leave room for two segments of 40.
    assert [info.tier for info in real.segments()] == ['note', 'note', 'note', 'device', 'device']
    assert [each.text for each in real.notes()] == [f'note {n}' for n in range(5)]
    assert real.tokens == 105 and real.nbytes == 105 * 512
    assert [info.note for info in real.segments()] == [f'note {n}' for n in range(5)]


def test_notes_lose_their_keys_only_when_no_segment_is_left_to_give_up():
    real = bank(128)
    records = [record(n, tokens=30) for n in range(4)]
    for each in records:
        real.add(each)
        real.attach_note(each, note(each), block(50))
    assert [r.block is not None for r in records] == [False, False, False, True]
    assert [r.note_block is not None for r in records] == [False, False, False, True]
    assert real.tokens == 80
    assert len(real.notes()) == 4, 'the words of a note outlive its keys'


def test_keys_find_only_what_can_still_be_shown():
    real = bank(150)
    tap = QueryTap((0,))
    tap.add(0, torch.randn(1, 4, 64))
    found = {}
    for number, told in enumerate((True, False, True, False, None, False)):
        each = record(number, tokens=40)
        each.summary = KeySummary((0,))
        each.summary.add(0, torch.randn(1, 40, 64))
        each.summary.commit()
        real.add(each)
        # Idle segments are noted and not attended to; one note has not come yet.
        if told is not None:
            real.attach_note(each, note(each), block(5) if told else None)
        found[number] = sorted(real.match(tap, Scope(0), 9))
    # Room for three segments, the idle ones before them are nowhere.
    assert found == {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3], 4: [0, 2, 3, 4],
                     5: [0, 2, 3, 4, 5]}
    late = real.get(4)
    real.add(record(6, tokens=140))
    assert sorted(real.match(tap, Scope(0), 9)) == [0, 2, 4]
    real.attach_note(late, note(late), None)
    assert sorted(real.match(tap, Scope(0), 9)) == [0, 2]


def test_one_segment_above_the_whole_budget_is_kept_alone():
    real = bank(128)
    real.add(record(0, 100))
    real.add(record(1, 500))
    assert [info.tier for info in real.segments()] == ['note', 'device']
    assert real.tokens == 500
    real.add(record(2, 10))
    assert [info.tier for info in real.segments()] == ['note', 'note', 'device']
    assert real.tokens == 10


def test_records_beyond_max_segments_are_forgotten_with_their_notes():
    real = bank(max_segments=3)
    records = [record(n) for n in range(5)]
    for each in records:
        real.add(each)
        real.attach_note(each, note(each), block(4))
    assert [info.id for info in real.segments()] == [2, 3, 4] and len(real) == 3
    assert [each.segment_id for each in real.notes()] == [2, 3, 4]
    assert real.get(0) is None and real.get(4) is records[4]
    assert real.tokens == 3 * 14


def test_a_note_that_comes_after_its_segment_was_forgotten_leaves_no_trace():
    real = bank(max_segments=1)
    old, new = record(0), record(1)
    real.add(old)
    real.add(new)
    real.attach_note(old, note(old), block(50))
    assert real.notes() == [] and real.tokens == 10 and old.note_block is None


def test_resident_by_hand():
    """Budget 25: the two newest segments of 10; notes of 3 have a budget of their own."""
    real = bank()
    records = [record(n) for n in range(4)]
    for each in records:
        real.add(each)
        real.attach_note(each, note(each), block(3))

    def places(**options):
        budgets = {'tokens': 25, 'note_tokens': 7}
        budgets |= {name: options.pop(name) for name in tuple(options) if name in budgets}
        return [item.place for item in real.resident(Scope(**{'epoch': 0, **options}), **budgets)]

    assert places() == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert places(note_tokens=0) == [(2, 0), (3, 0)]
    assert places(tokens=16, note_tokens=100) == [(0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    assert places(until=1) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert places(window=(1_400_000_000, 2_000_000_000)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert places(window=(1_500_000_000, 1_999_999_999)) == [(1, 0), (1, 1)]
    assert places(window=(1_500_000_001, 1_999_999_999)) == []
    assert places(cameras=('back',)) == [] and places(epoch=1) == []


def test_readers_never_see_a_half_changed_bank():
    """Another thread reads while segments come and go; what it sees always adds up."""
    real, stop, faults = bank(200, max_segments=8), threading.Event(), []

    def watch():
        while not stop.is_set():
            infos = real.segments()
            ids = [info.id for info in infos]
            if ids and ids != list(range(ids[0], ids[0] + len(ids))):
                faults.append(ids)
            # The budget, and the segment with its note for which room is being made.
            if sum(info.kv_bytes for info in infos) > (200 + 35) * TOKEN_BYTES:
                faults.append(infos)
            noted = [each.segment_id for each in real.notes()]
            if noted != sorted(set(noted)):
                faults.append(noted)

    reader = threading.Thread(target=watch)
    reader.start()
    try:
        for number in range(600):
            each = record(number, tokens=30)
            real.add(each)
            real.attach_note(each, note(each), block(5))
    finally:
        stop.set()
        reader.join(10)
    assert not faults and not reader.is_alive()


def test_nbytes_counts_spare_room():
    """A block that grew holds more than its tokens; the bank counts what is held."""
    real = bank()
    each = record(0, tokens=10)
    each.block.reserve(1)
    assert each.block.capacity == 20
    real.add(each)
    assert real.nbytes == 20 * TOKEN_BYTES and real.tokens == 10


@pytest.mark.parametrize('epoch', [0, 1])
def test_epochs_are_never_mixed(epoch):
    """The old epoch's segments are found too: its last notes may be written in the new one."""
    real = bank()
    records = [record(n, epoch=n // 2) for n in range(4)]
    for each in records:
        real.add(each)
    found = real.resident(Scope(epoch), tokens=1_000, note_tokens=0)
    assert [item.record.id for item in found] == [2 * epoch, 2 * epoch + 1]
    assert [e.segment_id for e in real.before(record(4, epoch=1), 1_000)] == [2, 3]
    assert real.before(record(4, epoch=2), 1_000) == []
