"""What `tww train` trains on: mixtures of tabletop samples, stage by stage.

In: a stage's name and a batch number. Out: a Batch. Samples are drawn until a batch has
`tokens` tokens, so that steps cost about the same whatever the streams' lengths.
"""

from __future__ import annotations

import dataclasses
import random

from tww_ros.config import EngineConfig
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.training import tabletop
from tww_ros.training.forward import Batch, Rotations, collate
from tww_ros.training.layout import Sample, SampleRound, plan
from tww_ros.training.tabletop import Recipe
from tww_ros.world.questions import KINDS
from tww_ros.world.table import TEST_SEEDS, TRAIN_SEEDS

# What is learnt last is asked twice as often.
HARD = ('where', 'what_at', 'colour_of', 'nth', 'last', 'before', 'order', 'how_long_ago', 'when',
        'last_place')
OFTEN = (*KINDS, *HARD)
# On whole streams also those that can seldom be asked, or that ask for the newest of several.
ALL_OFTEN = (*OFTEN, 'under', 'under', 'last', 'how_long_ago', 'before')
# Two times to compare, and the newest of several events: what was wrong most often at the end.
HARDEST = ('order', 'how_long_ago', 'before')
# A stream's notes and pictures cost the same whether one question follows or twenty.
QUIZ = dataclasses.replace(tabletop.SINGLE, name='quiz', segments=(6, 40), rounds=(10, 18),
                           kinds=ALL_OFTEN)
# A few notes, and many questions about them: to look things up is learnt on short streams first.
BRIEF = dataclasses.replace(QUIZ, name='brief', segments=(3, 8), gap_s=(0.0, 1.0), moments=(1, 2),
                            rounds=(6, 12), idle_share=0.0, kinds=OFTEN)
TALK = dataclasses.replace(tabletop.MULTI, name='talk', moments=(2, 4), rounds=(8, 16), sessions=3,
                           kinds=ALL_OFTEN)
LONG_QUIZ = dataclasses.replace(tabletop.LONG_SINGLE, name='long-quiz', rounds=(10, 20),
                                kinds=(*ALL_OFTEN, *HARDEST))
LONG_TALK = dataclasses.replace(tabletop.LONG, name='long-talk', moments=(2, 4), rounds=(8, 16),
                                sessions=3, kinds=(*ALL_OFTEN, *HARDEST))
VISITS = dataclasses.replace(tabletop.VISITS, kinds=(*ALL_OFTEN, *HARDEST))
# Notes alone, and many questions that only notes answer: cheap, there are no pictures.
LOOKUP = dataclasses.replace(tabletop.LONG_SINGLE, name='lookup', segments=(60, 800),
                             gap_s=(3.0, 60.0), video='none', visit_share=0.3, moments=(1, 3),
                             rounds=(14, 24), kinds=(*HARDEST, *HARDEST, 'nth', 'last',
                                                     'last_place', 'when', 'so_far'))
# A day of hours: times that are thousands of seconds apart.
DAY = dataclasses.replace(LOOKUP, name='day', segments=(500, 5_000), gap_s=(100.0, 400.0),
                          visit_share=0.6, idle_share=0.0)
# Share of the samples of each stage; stages build on each other and keep a little of the ones
# before. Samples differ in length: a quiz has some twenty times the tokens of a sample of events.
MIXTURES: dict[str, dict[Recipe, float]] = {
    'perception': {tabletop.PERCEPTION: 1.0},
    'events': {tabletop.PERCEPTION: 0.25, tabletop.EVENTS: 0.4, tabletop.GLANCE: 0.15, BRIEF: 0.2},
    'single': {tabletop.PERCEPTION: 0.05, tabletop.EVENTS: 0.35, tabletop.GLANCE: 0.25, BRIEF: 0.1,
               QUIZ: 0.22, LONG_QUIZ: 0.03},
    'multi': {tabletop.PERCEPTION: 0.05, tabletop.EVENTS: 0.25, tabletop.GLANCE: 0.2, QUIZ: 0.1,
              TALK: 0.22, LONG_QUIZ: 0.1, VISITS: 0.08},
    'long': {tabletop.EVENTS: 0.49, tabletop.GLANCE: 0.07, QUIZ: 0.03, TALK: 0.08, LOOKUP: 0.05,
             DAY: 0.05, LONG_QUIZ: 0.05, LONG_TALK: 0.12, VISITS: 0.06},
}
# Pictures are drawn larger than the model sees them, as a camera's are.
SIZES_PX = (96, 144, 192, 192)
# Streams on which memory may be thinner than usual: old segments without the tokens that tell
# nothing new, and segments of the past that a search brought back.
THINNED = (QUIZ, TALK, LONG_QUIZ, LONG_TALK)
THINNED_SHARE = 0.4
DROP_THRESHOLD = 0.08
RECENT_TOKENS = (44, 66, 88, 132)
MOST_FOUND = 6
# Without notes all video stays, and an answer goes through all that happened: of streams of more
# segments than this there are a few questions only, and of hours none.
BRIEFLY_SEEN, MOST_SEEN = 40, 200


def without_notes(mixture: dict[Recipe, float]) -> dict[Recipe, float]:
    """The same for a model that writes none but of single pictures, and reasons at length.

    What lives on notes alone is left out, and so are hours: without notes they do not fit.
    """
    kept = {}
    for recipe, share in mixture.items():
        if recipe.name == tabletop.PERCEPTION.name:
            kept[recipe] = share
        elif recipe.rounds[1] and recipe.video != 'none' and recipe.segments[1] <= MOST_SEEN:
            # What is reasoned about has to be seen; and without a question nothing is learnt.
            video = 'all' if recipe.video == 'near' else recipe.video
            asked = ({'moments': (1, 1), 'rounds': (1, 3)}
                     if recipe.segments[1] > BRIEFLY_SEEN else {})
            kept[dataclasses.replace(recipe, notes=False, video=video, **asked)] = share
    return kept


def thinner(config: EngineConfig, rng: random.Random) -> EngineConfig:
    """The settings with token drop, or with recall of old segments, or both."""
    drop = rng.choice((0.0, DROP_THRESHOLD, DROP_THRESHOLD))
    return dataclasses.replace(
        config, watch=dataclasses.replace(config.watch, drop_threshold=drop),
        memory=dataclasses.replace(config.memory, recent_tokens=rng.choice(RECENT_TOKENS)))


def with_found(sample: Sample, rng: random.Random) -> Sample:
    """Rounds that see some segments of the past, those of a moment the same: what a search finds
    is what proves an answer, and other segments."""
    moments: dict[int, list[SampleRound]] = {}
    for each in sample.rounds:
        moments.setdefault(each.after, []).append(each)
    found: dict[int, tuple[int, ...]] = {}
    for after, rounds in moments.items():
        proof = [segment for each in rounds for segment in each.proof]
        others = [rng.randrange(after) for _ in range(MOST_FOUND)]
        mixed = rng.sample(others + proof, rng.randint(0, MOST_FOUND))
        found[after] = tuple(dict.fromkeys(mixed))
    return dataclasses.replace(sample, rounds=tuple(
        dataclasses.replace(each, found=found[each.after]) for each in sample.rounds))


class TabletopBatches:
    """Endless batches from the tabletop world. Training and held-out worlds share no seed."""

    def __init__(self, model: VideoLanguageModel, config: EngineConfig, tokens: int,
                 seed: int = 0, notes: bool = True) -> None:
        """notes: False trains the ablation that reasons at length instead."""
        self._codec = model.codec
        self._config = config
        self._tokens = tokens
        self._seed = seed
        self._mixtures = MIXTURES if notes else {
            stage: without_notes(mixture) for stage, mixture in MIXTURES.items()}
        self._rotations = Rotations(model.hf.config.text_config)

    def batch(self, stage: str, number: int) -> Batch:
        """See trainer.Batches."""
        return self._make(stage, random.Random(f'{self._seed} {stage} {number}'), TRAIN_SEEDS)

    def held_out(self, stage: str, number: int) -> Batch:
        """See trainer.Batches."""
        return self._make(stage, random.Random(f'held out {stage} {number}'), TEST_SEEDS)

    def _make(self, stage: str, rng: random.Random, seeds: range) -> Batch:
        mixture, plans, total = self._mixtures[stage], [], 0
        while total < self._tokens:
            recipe = rng.choices(list(mixture), list(mixture.values()))[0]
            made = tabletop.sample(rng.choice(seeds), recipe, rng.choice(SIZES_PX))
            config = self._config
            if recipe in THINNED and rng.random() < THINNED_SHARE:
                made, config = with_found(made, rng), thinner(config, rng)
            planned = plan(made, self._codec, config)
            # Without notes, a stream with a hand at work whenever it would be asked about teaches
            # nothing.
            if planned.learnt:
                plans.append(planned)
                total += len(planned)
        watch = self._config.watch
        return collate(plans, self._rotations, min_pixels=watch.min_pixels,
                       max_pixels=watch.max_pixels)
