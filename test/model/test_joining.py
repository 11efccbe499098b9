"""Joined parts attend as single ones do: same logits, same attention mass, pages found again."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter

import pytest
import torch

from tww_ros import load_model
from tww_ros.memory.quantization import QuantScheme, quantize
from tww_ros.memory.view import Entry, lay_out
from tww_ros.model import joining
from tww_ros.model.run import Span, TokenRun


@pytest.fixture(scope='module')
def model():
    return load_model('tiny-random', device='cpu')


def filled(model, length, start, seed):
    """A sealed block of random keys and values."""
    generator = torch.Generator().manual_seed(seed)
    block = model.new_block(start, capacity=length)
    for layer in range(model.block_shape.layers):
        shape = (model.block_shape.kv_heads, length, model.block_shape.head_dim)
        block.write(layer, torch.randn(shape, generator=generator),
                    torch.randn(shape, generator=generator))
    block.commit(length, start + length)
    block.seal()
    return block


def memory(model, count, seed=0):
    """A sink, then small blocks at places that have nothing to do with where they were written."""
    rng = random.Random(seed)
    entries = [Entry(filled(model, 5, 0, 999), 'source')]
    for number in range(count):
        length = 200 if number == 7 else rng.randint(1, 30)
        block = filled(model, length, rng.randint(0, 5_000), number)
        if number % 9 == 4:
            block = quantize(block, QuantScheme(8))
        entries.append(Entry(block, rng.choice(('source', 'target')), number))
    # A question under way: its block is not sealed, so it is not joined.
    asked = filled(model, 6, 40, 1_000)
    asked.sealed = False
    entries.append(Entry(asked, 'source'))
    return entries


def attended(model, view, tokens=(7, 8, 9)):
    """Logits and attention mass of a short span behind a view."""
    mass = torch.zeros(len(view.parts) + 1)
    block = model.new_block(view.start('source'))
    logits, = model.step([Span(block, view, TokenRun.text(list(tokens), block.end), 'all', mass)])
    return logits, mass


@pytest.mark.parametrize('scheme', ['continuous', 'decoupled'])
@pytest.mark.parametrize('count', [12, 60, 200])
def test_logits_and_mass_are_the_same(model, scheme, count, monkeypatch):
    view = lay_out(memory(model, count), scheme)
    joined = model._parts(view)
    assert len(joined) < len(view.parts) * (0.4 if count > 12 else 0.8)
    assert sum(part.length for part in joined) == view.tokens
    ours, our_mass = attended(model, view)
    monkeypatch.setattr(model, '_pages', None)
    theirs, their_mass = attended(model, lay_out(memory(model, count), scheme))
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert torch.allclose(our_mass, their_mass, atol=1e-5)


def test_pages_are_found_again_when_memory_moves_on(model):
    entries = memory(model, 200)
    before = model._pages.made
    model._parts(lay_out(entries, 'continuous'))
    first = model._pages.made - before
    assert first > 8
    # The oldest note leaves, a new one comes: only the pages at the ends are new.
    moved = [entries[0], *entries[2:-1], Entry(filled(model, 9, 77, 5_000), 'target', 5_000)]
    model._parts(lay_out(moved, 'continuous'))
    assert model._pages.made - before - first <= 3
    again = model._pages.made
    model._parts(lay_out(moved, 'continuous'))
    assert model._pages.made == again


def test_pages_keep_no_block_alive_and_keep_their_budget(model):
    entries = memory(model, 60)
    model._parts(lay_out(entries, 'continuous'))
    references = [weakref.ref(entry.block) for entry in entries]
    del entries
    gc.collect()
    assert not any(reference() for reference in references)
    pages = type(model._pages)(model._rope, model.block_shape, cache_bytes=300_000)
    for seed in range(6):
        pages.join(lay_out(memory(model, 40, seed), 'continuous').parts)
        largest = max(kept.page.nbytes for kept in pages._pages.values())
        assert pages.nbytes <= 300_000 + largest
        assert pages.nbytes == sum(kept.page.nbytes for kept in pages._pages.values())


def test_pages_that_no_view_has_any_more_are_given_up(model):
    pages = type(model._pages)(model._rope, model.block_shape)
    blocks = {}
    for seed in range(3 * joining.MOST_JOINED):
        blocks[seed] = parts = lay_out(memory(model, 6, seed), 'continuous').parts
        pages.join(parts)
        lately = range(max(0, seed - joining.MOST_JOINED), seed + 1)
        seen = {id(part.block) for number in lately for part in blocks[number]}
        assert all(block in seen for key in pages._pages for block, *_ in key)
        assert pages.nbytes == sum(kept.page.nbytes for kept in pages._pages.values())
    assert pages._pages


def test_a_page_that_has_grown_takes_the_place_of_those_before(model):
    pages = type(model._pages)(model._rope, model.block_shape)
    entries = memory(model, 40)
    for count in range(2, len(entries)):
        pages.join(lay_out(entries[:count], 'continuous').parts)
    beginnings = Counter(key[0] for key in pages._pages)
    assert set(beginnings.values()) <= set(range(1, joining.MOST_ALIKE + 1))
    assert max(beginnings.values()) == joining.MOST_ALIKE
    # A view laid out again, and one with a note less: both are there.
    made = pages.made
    for count in (len(entries) - 1, len(entries) - 2):
        pages.join(lay_out(entries[:count], 'continuous').parts)
    assert pages.made == made
