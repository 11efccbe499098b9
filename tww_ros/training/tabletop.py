"""Samples from the tabletop world: streams with perfect notes and exact answers, stage by stage.

In: a seed and a Recipe. Out: a Sample. Frames are rendered where video is wanted; segments far
from anything that is learnt can be left out (`Recipe.video`), so that a stream of many minutes
costs little more than its notes.

    stage          teaches                                      recipe
    0 perception   what stands where, from one picture          PERCEPTION
      events       what has changed, in short and lively streams    EVENTS
    1 single       notes about events; one question a session   SINGLE
    2 multi        many rounds a session, follow-ups            MULTI
                   what can be seen now                         GLANCE
    3 long         long streams, proofs far back, distractors   LONG
                   hours with a needle here and there           VISITS
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tww_ros.training.layout import Sample, SamplePatch, SampleRound, SampleSegment
from tww_ros.world.known import TableQuestion
from tww_ros.world.notes import Chronicle
from tww_ros.world.questions import KINDS_OF, Asker
from tww_ros.world.render import Renderer
from tww_ros.world.table import Episode, Pace, TableState, crowd, simulate

FRAME_S = 1.0
GRID = 3


@dataclass(frozen=True)
class Recipe:
    """How the streams of one stage look; pairs are (least, most).

    moments: how often questions are asked; rounds: how many each time. single: every question in a
    session of its own; otherwise there are at most `sessions`. video: 'all', 'none' (the texts
    are the same), or 'near' for the last segments before questions and around some events.
    late_share: how many streams begin at some moment of a day instead of at its start.
    kinds: of the questions; empty: all.
    notes: False leaves them out, and answers reason through every event instead (the ablation).
    """

    name: str
    segments: tuple[int, int]
    gap_s: tuple[float, float]
    moments: tuple[int, int]
    rounds: tuple[int, int]
    single: bool
    video: str = 'all'
    idle_share: float = 0.06
    furnished_share: float = 0.2
    most_furniture: int = 4
    rest_s: float = 1.4
    swap_weight: float = 1.0
    visit_share: float = 0.0
    late_share: float = 0.3
    notes: bool = True
    sessions: int = 2
    kinds: tuple[str, ...] = ()


PERCEPTION = Recipe('perception', (1, 1), (1.0, 1.0), (0, 0), (0, 0), True)
EVENTS = Recipe('events', (2, 5), (0.0, 0.5), (1, 1), (0, 0), True, idle_share=0.0,
                furnished_share=0.9, most_furniture=6, late_share=1.0, swap_weight=3.0)
SINGLE = Recipe('single', (6, 32), (0.5, 4.0), (2, 4), (4, 8), True)
MULTI = Recipe('multi', (10, 40), (0.5, 4.0), (3, 6), (2, 5), False)
LONG = Recipe('long', (60, 160), (1.0, 5.0), (2, 5), (4, 8), False, video='near')
LONG_SINGLE = Recipe('long-single', (60, 160), (1.0, 5.0), (2, 4), (5, 10), True, video='near')
# A day on which hardly anything happens: things stand on the table for a second or two, minutes
# apart, and are gone when somebody asks.
VISITS = Recipe('visits', (40, 1_500), (5.0, 120.0), (1, 2), (8, 14), True, video='near',
                furnished_share=0.3, most_furniture=3, visit_share=0.8)
# What can be seen now, asked about crowded tables with few notes or none: who has to look, learns
# to look.
GLANCE = Recipe('glance', (1, 3), (0.0, 1.0), (1, 1), (6, 14), True, idle_share=0.0,
                furnished_share=1.0, most_furniture=8, late_share=1.0,
                kinds=(*KINDS_OF['present'], 'what_at', 'colour_of', 'where'))
# Segments before a question (and before a note) whose video is kept with video='near'.
NEAR = 9
# Timestamps of one to five digits.
CLOCKS_S = (10.0, 100.0, 1_000.0, 10_000.0, 90_000.0)
READ_BEFORE = 3


def sample(seed: int, recipe: Recipe, size_px: int = 96) -> Sample:
    """The sample of that seed; the same arguments give the same sample."""
    rng = random.Random(f'{recipe.name} {seed}')
    if recipe.name == PERCEPTION.name:
        return _perception(seed, rng, size_px)
    count = rng.randint(*recipe.segments)
    pace = Pace(rest_s=recipe.rest_s, gap_s=max(0.01, rng.uniform(*recipe.gap_s)),
                idle_share=recipe.idle_share, furnished_share=recipe.furnished_share,
                most_furniture=recipe.most_furniture, swap_weight=recipe.swap_weight,
                visit_share=recipe.visit_share)
    episode = simulate(seed, count * 2 * FRAME_S + 4.0, pace)
    return stream(episode, rng, recipe, count, size_px)


def stream(episode: Episode, rng: random.Random, recipe: Recipe, count: int,
           size_px: int) -> Sample:
    """`count` segments of an episode with notes, and questions at some moments."""
    chronicle = Chronicle(episode)
    wanted = set(rng.sample(range(1, count), min(count - 1, rng.randint(*recipe.moments))))
    # One moment at the end, where the proofs are far back.
    wanted.add(count - 1)
    cuts, rounds = [], []
    subjects: dict[str, TableQuestion] = {}
    at_s = rng.uniform(0.0, 0.6)
    clock_s = 0.0
    if rng.random() < recipe.late_share:
        clock_s = rng.uniform(0.0, rng.choice(CLOCKS_S))
    for number in range(count):
        asked = number in wanted
        frames = 1 if asked and rng.random() < 0.35 else 2
        stamps = [at_s + FRAME_S * i + rng.uniform(-0.05, 0.05) * (at_s > 1.0)
                  for i in range(frames)]
        at_s += FRAME_S * frames
        zero = cuts[0][0] if cuts else stamps[0]
        time_s = (stamps[0] + stamps[-1]) / 2 - zero + clock_s
        # What the timestamp shows, not what it was made from.
        chronicle.add(stamps, round(time_s, 1))
        cuts.append((*stamps, time_s))
        if asked and chronicle.settled:
            noted = number + 1 - (rng.random() < 0.5)
            rounds += _rounds(chronicle, rng, recipe, number + 1, noted, subjects)
    video = _video(recipe, chronicle, rounds, rng, count)
    renderer = Renderer(episode, size_px)
    segments = []
    for number, (*stamps, time_s) in enumerate(cuts):
        patches = ()
        if number in video:
            pictures = tuple(renderer.frame(stamp) for stamp in stamps)
            patches = (SamplePatch(time_s, pictures, GRID, GRID),)
        segments.append(SampleSegment(
            stamps[0], stamps[-1], patches, chronicle.notes[number] if recipe.notes else None,
            learn=all(n in video for n in range(max(0, number - READ_BEFORE), number + 1))))
    return Sample(tuple(segments), tuple(rounds))


def _rounds(chronicle: Chronicle, rng: random.Random, recipe: Recipe, after: int, noted: int,
            subjects: dict[str, TableQuestion]) -> Iterator[SampleRound]:
    asker = Asker(chronicle, rng)
    sessions = 1 if recipe.single or rng.random() < 0.6 else recipe.sessions
    for number in range(rng.randint(*recipe.rounds)):
        session = f'{after}/{number}' if recipe.single else str(rng.randrange(sessions))
        before = subjects.get(session)
        if before is not None and before.subject is not None and rng.random() < 0.3:
            made = asker.follow_up(before.subject)
        else:
            made = asker.ask(recipe.kinds)
        subjects[session] = made
        if rng.random() < 0.5:
            made = made.with_choices(rng)
        yield to_round(made, chronicle, after, noted, session, recipe.notes)


def to_round(question: TableQuestion, chronicle: Chronicle, after: int, noted: int, session: str,
             notes: bool = True) -> SampleRound:
    """A question as it is trained on and asked."""
    reasoning = question.reasoning if notes else long_reasoning(chronicle)
    return SampleRound(after, noted, session, question.text, question.answer, reasoning,
                       question.choices, kind=question.kind, family=question.family,
                       proof=question.proof)


def long_reasoning(chronicle: Chronicle) -> str:
    """Every event so far: what must be gone through again when there are no notes."""
    start = chronicle.notes[0].split(';')[0]
    return '; '.join([start, *(seen.note for seen in chronicle.seen)])


def _video(recipe: Recipe, chronicle: Chronicle, rounds: list[SampleRound], rng: random.Random,
           count: int) -> set[int]:
    if recipe.video != 'near':
        return set(range(count)) if recipe.video == 'all' else set()
    kept = set(range(min(2, count)))
    for after in {each.after for each in rounds}:
        kept.update(range(max(0, after - NEAR), after))
    events = [seen.segment for seen in chronicle.seen]
    # Where the count's tens change: once in ten things, and each later number depends on it.
    tens = [seen.segment for seen in chronicle.seen
            if seen.event.kind == 'put' and seen.puts % 10 == 0]
    for segment in {*rng.sample(events, min(4, len(events))), *tens[-2:]}:
        kept.update(range(max(0, segment - READ_BEFORE), segment + 1))
    return kept


def _perception(seed: int, rng: random.Random, size_px: int) -> Sample:
    count = rng.randint(0, 9)
    state: TableState = crowd(rng, count, min(count, rng.choice((0, 0, 0, 1, 2))))
    episode = Episode(seed, 10.0, state, ())
    chronicle, start_s = Chronicle(episode), rng.uniform(0.0, 8.0)
    stamps = [start_s, start_s + FRAME_S][:rng.choice((1, 2, 2))]
    time_s = (stamps[-1] - stamps[0]) / 2
    note = chronicle.add(stamps, time_s)
    renderer = Renderer(episode, size_px)
    patch = SamplePatch(time_s, tuple(renderer.frame(stamp) for stamp in stamps), GRID, GRID)
    return Sample((SampleSegment(stamps[0], stamps[-1], (patch,), note),), ())
