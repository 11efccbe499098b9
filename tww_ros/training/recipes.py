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
from tww_ros.training.layout import plan
from tww_ros.training.tabletop import Recipe
from tww_ros.world.questions import KINDS
from tww_ros.world.table import TEST_SEEDS, TRAIN_SEEDS

# What is learnt last is asked twice as often.
HARD = ('where', 'what_at', 'colour_of', 'nth', 'last', 'before', 'order', 'how_long_ago', 'when',
        'last_place')
OFTEN = (*KINDS, *HARD)
# A stream's notes and pictures cost the same whether one question follows or twenty.
QUIZ = dataclasses.replace(tabletop.SINGLE, name='quiz', segments=(6, 40), rounds=(10, 18),
                           kinds=OFTEN)
# A few notes, and many questions about them: to look things up is learnt on short streams first.
BRIEF = dataclasses.replace(QUIZ, name='brief', segments=(3, 8), gap_s=(0.0, 1.0), moments=(1, 2),
                            rounds=(6, 12), idle_share=0.0)
TALK = dataclasses.replace(tabletop.MULTI, name='talk', moments=(2, 4), rounds=(8, 16), sessions=3,
                           kinds=OFTEN)
LONG_QUIZ = dataclasses.replace(tabletop.LONG_SINGLE, name='long-quiz', rounds=(10, 20),
                                kinds=OFTEN)
LONG_TALK = dataclasses.replace(tabletop.LONG, name='long-talk', moments=(2, 4), rounds=(8, 16),
                                sessions=3, kinds=OFTEN)
# Share of the samples of each stage; stages build on each other and keep a little of the ones
# before. Samples differ in length: a quiz has some twenty times the tokens of a sample of events.
MIXTURES: dict[str, dict[Recipe, float]] = {
    'perception': {tabletop.PERCEPTION: 1.0},
    'events': {tabletop.PERCEPTION: 0.25, tabletop.EVENTS: 0.5, BRIEF: 0.25},
    'single': {tabletop.PERCEPTION: 0.05, tabletop.EVENTS: 0.35, tabletop.GLANCE: 0.25, BRIEF: 0.1,
               QUIZ: 0.22, LONG_QUIZ: 0.03},
    'multi': {tabletop.PERCEPTION: 0.05, tabletop.EVENTS: 0.35, tabletop.GLANCE: 0.25, QUIZ: 0.14,
              TALK: 0.16, LONG_QUIZ: 0.05},
    'long': {tabletop.EVENTS: 0.35, tabletop.GLANCE: 0.25, QUIZ: 0.1, TALK: 0.1, LONG_QUIZ: 0.1,
             LONG_TALK: 0.1},
}
# Pictures are drawn larger than the model sees them, as a camera's are.
SIZES_PX = (96, 144, 192, 192)


class TabletopBatches:
    """Endless batches from the tabletop world. Training and held-out worlds share no seed."""

    def __init__(self, model: VideoLanguageModel, config: EngineConfig, tokens: int,
                 seed: int = 0, notes: bool = True) -> None:
        """notes: False trains the ablation that reasons at length instead."""
        self._codec = model.codec
        self._config = config
        self._tokens = tokens
        self._seed = seed
        self._notes = notes
        self._rotations = Rotations(model.hf.config.text_config)

    def batch(self, stage: str, number: int) -> Batch:
        """See trainer.Batches."""
        return self._make(stage, random.Random(f'{self._seed} {stage} {number}'), TRAIN_SEEDS)

    def held_out(self, stage: str, number: int) -> Batch:
        """See trainer.Batches."""
        return self._make(stage, random.Random(f'held out {stage} {number}'), TEST_SEEDS)

    def _make(self, stage: str, rng: random.Random, seeds: range) -> Batch:
        mixture, plans, total = MIXTURES[stage], [], 0
        while total < self._tokens:
            recipe = rng.choices(list(mixture), list(mixture.values()))[0]
            if not self._notes:
                # What is reasoned about at length has to be seen.
                recipe = dataclasses.replace(
                    recipe, notes=False, video='all' if recipe.video == 'near' else recipe.video)
            made = tabletop.sample(rng.choice(seeds), recipe, rng.choice(SIZES_PX))
            plans.append(plan(made, self._codec, self._config))
            total += len(plans[-1])
        watch = self._config.watch
        return collate(plans, self._rotations, min_pixels=watch.min_pixels,
                       max_pixels=watch.max_pixels)
