"""Memories for tests: one segment after the other, and one filled from the tabletop world."""

import random

import torch

from tww_ros.memory.store import Store
from tww_ros.memory.store_schema import Identity, StoredAnswer, StoredNote, StoredSegment
from tww_ros.memory.thumbnail import encode_thumbnail
from tww_ros.types import Pose
from tww_ros.world.notes import Chronicle
from tww_ros.world.questions import Asker
from tww_ros.world.render import Renderer
from tww_ros.world.table import simulate

S = 1_000_000_000
IDENTITY = Identity('tiny', 'c0ffee', 'continuous', 2, 1, 8, 'bfloat16')
OTHER = Identity('tiny', 'decaf', 'decoupled', 2, 1, 8, 'bfloat16')


def segment(number, *, camera='front', epoch=0, start_s=None, order=None, **more):
    """Segment `number`: 2 s long, every 3 s."""
    start_s = 3 * number if start_s is None else start_s
    return StoredSegment(number, number if order is None else order, camera, epoch,
                         round(start_s * S), round((start_s + 2) * S), frames=2, tokens=9,
                         closed_by='time', **more)


def block_of(number, tokens=6):
    """Tensors that nobody else has."""
    made = torch.Generator().manual_seed(number)
    return {name: torch.randn(2, 1, tokens, 8, generator=made).to(torch.bfloat16)
            for name in ('keys', 'values')}


def put(store, number, text=None, *, tokens=6, thumbnail=None, **more):
    """A segment with its note and its block, in one transaction."""
    with store.transaction():
        store.add_segment(segment(number, **more), thumbnail)
        store.add_block(number, 'segment', block_of(number, tokens), {'start': 10 * number})
        store.add_note(StoredNote(number, f'note {number}' if text is None else text))


def same(tensors, number, tokens=6):
    """Whether these are the tensors of `block_of`."""
    wanted = block_of(number, tokens)
    return tensors.keys() == wanted.keys() and all(
        torch.equal(tensors[name], wanted[name]) for name in wanted)


def fill_from_table(store, *, seed=11, segments=30, start_s=0.0, size_px=192, questions=True):
    """A table watched for 4 s a segment, told perfectly, asked about every sixth segment."""
    rng = random.Random(seed)
    episode = simulate(seed, 4.0 * segments)
    renderer, chronicle = Renderer(episode, size_px), Chronicle(episode)
    first = store.next_id
    store.add_epoch(0, round(start_s * S))
    for number in range(segments):
        stamps_s = [4.0 * number + second for second in range(4)]
        note = chronicle.add(stamps_s, stamps_s[0] + 0.5)
        with store.transaction():
            store.add_segment(StoredSegment(
                first + number, number, 'table', 0, round((start_s + stamps_s[0]) * S),
                round((start_s + stamps_s[-1]) * S), 4, 96, 'time',
                Pose('map', (0.1 * number, 1.5, 0.0)), {}),
                encode_thumbnail(renderer.frame(stamps_s[2])))
            store.add_note(StoredNote(first + number, note, tokens=12, finish_reason='stop'))
        if questions and number % 6 == 5:
            store.add_answer(_asked(chronicle, rng, first, number, start_s))
    if segments > 12:
        store.add_note(StoredNote(first, f'{chronicle.puts} things were put down', 'episode',
                                  first + 11))
    return chronicle


def _asked(chronicle, rng, first, number, start_s):
    made = Asker(chronicle, rng).ask().with_choices(rng)
    chances = [rng.random() + 4 * (choice == made.answer) for choice in made.choices]
    proof = [*made.proof, number][:3]
    now_ns = round((start_s + chronicle.now_s) * S)
    return StoredAnswer(
        made.text, made.answer, now_ns, now_ns, session='a', choices=made.choices,
        probabilities=tuple(chance / sum(chances) for chance in chances),
        reasoning=made.reasoning, finish_reason='choice', total_s=0.12,
        evidence=tuple((first + each, 0.6 / (place + 1)) for place, each in enumerate(proof)))


def block_files(store):
    """Every file of KV in its folder."""
    return sorted(path for path in (store.folder / 'blocks').rglob('*') if path.is_file())


def reopened(store, **options):
    """Closed, and opened once more."""
    store.close()
    return Store.open(store.folder, IDENTITY, **options)
