"""Models that know all answers, or none, and small protocols to try them on."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tww_ros.config import EngineConfig, WatchConfig
from tww_ros.evaluation.protocol import Protocol, StreamPlan, plan_streams
from tww_ros.model.scripted import ScriptedModel

WATCH = {'watch.sample_fps': 1.0, 'watch.segment_s': 1.5, 'watch.min_pixels': 1_024,
         'watch.max_pixels': 1_024, 'answer.session_tokens': 100_000}
SMALL = Protocol(seed=1, questions=16, streams=2, segments=24, moments=3, size_px=64)


def watch_config() -> WatchConfig:
    return EngineConfig.from_flat(WATCH).watch


class Oracle(ScriptedModel):
    """Answers every planned question right (or wrong), knowing the moment by the patches seen."""

    def __init__(self, plans: list[StreamPlan], right: bool = True, padding: str = '',
                 **options: object) -> None:
        super().__init__(answer=lambda text: self.say(text), **options)
        self.settings = dict(WATCH)
        self.right = right
        self.padding = padding
        self.seen = 0
        self.asked: list[str] = []
        # Segments of one patch each: (patches seen in all streams, question) → answers in order.
        self.told: dict[tuple[int, str], list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
        past = 0
        for plan in plans:
            assert all(len(segment.stamps_ns) <= 2 for segment in plan.segments)
            for moment in plan.moments:
                for planned in moment.questions:
                    made = planned.question
                    text = self.style.question(made.text, made.choices)
                    self.told[past + moment.segment + 1, text].append((made.answer, made.choices))
            past += len(plan.segments)
        self.patches = past

    def encode_patch(self, pixels):
        self.seen += 1
        return super().encode_patch(pixels)

    def say(self, text: str) -> str:
        self.asked.append(text)
        # The streams may be watched again and again, with other settings.
        answers = self.told[(self.seen - 1) % self.patches + 1, text]
        answer, choices = answers[0]
        answers.append(answers.pop(0))
        if self.right:
            return answer if choices else answer + self.padding
        return next((choice for choice in choices if choice != answer), 'no idea')


@pytest.fixture(scope='module')
def plans() -> list[StreamPlan]:
    made = plan_streams(SMALL, watch_config(), 2)
    for plan in made:
        # One session at most, or an oracle could not tell whose 'it' a follow-up means.
        assert len({planned.session for moment in plan.moments for planned in moment.questions
                    if planned.lot == 'multi'}) <= 1
    return made
