"""What travels through the pipeline, left to right: frozen records with shapes and units.

    Frame → (video) → Patch → (model) → VisionTokens → (engine) → Segment, Note → Question → Answer

Nothing here computes. Stamps are integers in nanoseconds because that is what a ROS header holds
and because float seconds since 1970 lose the last 100 ns. Images are RGB, uint8, [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tww_ros.errors import FrameError, QuestionError

NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Pose:
    """Where the robot was: position in metres, orientation as quaternion (x, y, z, w)."""

    frame_id: str
    position_m: tuple[float, float, float]
    orientation_xyzw: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera image with its header stamp.

    image: uint8 [H, W, 3], RGB; it is not copied, so the caller must not write to it afterwards.
    Raises FrameError when the image is empty, of another dtype or of another shape.
    """

    stamp_ns: int
    camera: str
    image: np.ndarray
    pose: Pose | None = None

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray):
            raise FrameError(f'camera {self.camera!r}: expected a numpy array, got '
                             f'{type(image).__name__}; convert the image to uint8 RGB first')
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise FrameError(f'camera {self.camera!r}: expected a uint8 image of shape [H, W, 3], '
                             f'got {image.dtype} {list(image.shape)}; convert it to RGB first')
        if image.shape[0] == 0 or image.shape[1] == 0:
            raise FrameError(f'camera {self.camera!r}: the image is empty '
                             f'({image.shape[1]}×{image.shape[0]} px); check the camera driver')
        if not isinstance(self.stamp_ns, (int, np.integer)) or self.stamp_ns < 0:
            raise FrameError(f'camera {self.camera!r}: expected a stamp in nanoseconds ≥ 0, got '
                             f'{self.stamp_ns!r}')
        # Differences of numpy's unsigned integers wrap around.
        object.__setattr__(self, 'stamp_ns', int(self.stamp_ns))


@dataclass(frozen=True, eq=False)
class LateFrame:
    """A frame whose image is made only if it is watched: one that is left out costs little.

    read: makes the frame, once at most, in the watcher's thread. None when it cannot be made: the
    frame is then rejected, and read has told why. It must not raise.
    """

    stamp_ns: int
    camera: str
    read: Callable[[], Frame | None] = field(repr=False)


@dataclass(frozen=True)
class Question:
    """One question about what the cameras saw.

    session: rounds with the same session name see each other; different sessions never do.
    cameras: restrict memory to these cameras; empty = all.
    window: (start_ns, end_ns) of the segments to attend to, inclusive; None = everything resident.
    choices: when given, the answer is one of them, with a probability for each.
    timeout_s: give up after this long; 0 = never.
    """

    text: str
    session: str = 'default'
    cameras: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    window: tuple[int, int] | None = None
    max_new_tokens: int = 64
    timeout_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'cameras', tuple(self.cameras))
        object.__setattr__(self, 'choices', tuple(self.choices))
        if not self.text.strip():
            raise QuestionError('the question is empty; say what you want to know')
        if self.max_new_tokens < 1:
            raise QuestionError(f'max_new_tokens must be ≥ 1, got {self.max_new_tokens}')
        if not self.timeout_s >= 0:
            raise QuestionError(f'timeout_s must be ≥ 0 (0 = never), got {self.timeout_s}')
        if self.window is not None and self.window[0] > self.window[1]:
            raise QuestionError(f'the window starts at {self.window[0]} ns, after its end at '
                                f'{self.window[1]} ns; swap the two')
        if len(self.choices) == 1:
            raise QuestionError('one choice is no choice: give at least two, or none for a free '
                                'answer')
        if any(not choice.strip() for choice in self.choices):
            raise QuestionError(f'a choice is empty: {list(self.choices)!r}')
        if len(set(self.choices)) != len(self.choices):
            raise QuestionError(f'choices must differ from each other, got {list(self.choices)!r}')


@dataclass(frozen=True)
class SegmentInfo:
    """One segment of memory as users see it: a run of consecutive frames of one camera.

    order: place among all segments of all cameras, by the time they were opened.
    epoch: grows by one each time stamps jump back; memory of different epochs is never mixed.
    tier: where its KV is: 'device', 'quantized', 'host', 'disk', or 'note' when only the note
    remains.
    """

    id: int
    order: int
    camera: str
    epoch: int
    start_ns: int
    end_ns: int
    frames: int
    tokens: int
    kv_bytes: int
    tier: str
    closed_by: str
    note: str = ''
    pose: Pose | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What the model wrote about one segment."""

    segment_id: int
    camera: str
    start_ns: int
    end_ns: int
    text: str
    tokens: int
    finish_reason: str
    seconds: float


@dataclass(frozen=True)
class Evidence:
    """A segment that the answer attended to; score = its share of the attention mass, 0 to 1."""

    segment_id: int
    camera: str
    start_ns: int
    end_ns: int
    score: float
    tier: str
    note: str = ''
    pose: Pose | None = None


@dataclass(frozen=True)
class Answer:
    """The whole answer to one question.

    finish_reason: 'stop', 'length' (max_new_tokens reached) or 'choice'.
    as_of_ns: stamp of the newest frame that the answer could see.
    reused_tokens: memory tokens attended to without being computed again.
    queue_s: accepted → first step on it; first_token_s and total_s: accepted → first token / end.
    """

    text: str
    reasoning: str
    finish_reason: str
    as_of_ns: int
    evidence: tuple[Evidence, ...]
    choice_probabilities: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0
    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    token_ids: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class AnswerPiece:
    """A part of what is written, as it is generated; the last piece carries the Answer.

    The pieces hold the layout too (reasoning, marks of the prompt style); Answer.text does not.
    """

    text: str
    answer: Answer | None = None


@dataclass(frozen=True)
class WatchQuestion:
    """A standing question: it is checked each time a segment is closed and noted, until it holds.

    text: a yes-or-no question, or 'Tell me when …'. cameras: check segments of these only, and
    look at no others; empty = all. choices: a check's answer is one of them. expected: ends when
    this choice is the answer; empty = the first. threshold: its probability must reach this; 0 =
    it only has to be the likeliest. confirmations: so many checks in a row must agree.
    timeout_s: give up after this long; 0 = never.
    """

    text: str
    cameras: tuple[str, ...] = ()
    choices: tuple[str, ...] = ('yes', 'no')
    expected: str = ''
    threshold: float = 0.0
    confirmations: int = 1
    timeout_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'choices', tuple(self.choices) or ('yes', 'no'))
        object.__setattr__(self, 'cameras', tuple(sorted(set(self.cameras))))
        object.__setattr__(self, 'expected', self.expected or self.choices[0])
        # The rest is refused by the question that each check asks.
        Question(self.text, choices=self.choices, timeout_s=self.timeout_s)
        if self.expected not in self.choices:
            raise QuestionError(f'expected is {self.expected!r}, and no choice; take one of '
                                f'{list(self.choices)!r}')
        if not 0 <= self.threshold <= 1:
            raise QuestionError(f'threshold must be 0 to 1, got {self.threshold}')
        if self.confirmations < 1:
            raise QuestionError(f'confirmations must be ≥ 1, got {self.confirmations}')


@dataclass(frozen=True)
class WatchUpdate:
    """One check of a standing question.

    stamp_ns: of the newest frame that it could see. answer: the likeliest choice. probability: of
    the expected choice. checks: until now, this one included; agreeing: of these, those in a row
    that agreed. holds: the watch is over, because it is so.
    """

    stamp_ns: int
    answer: str
    probability: float
    evidence: tuple[Evidence, ...] = ()
    checks: int = 1
    agreeing: int = 0
    holds: bool = False


@dataclass(frozen=True)
class EngineStats:
    """Counters since start (frames_*, notes_*, answers_*, steps) and the present state (the rest).

    frames_received = frames_watched + frames_skipped (sampler) + frames_dropped (full queue)
                      + frames_rejected (out of order or malformed) + frames_waiting.
    first_token_s, answer_s: from asking to the first token and to the end, of the newest answer.
    """

    frames_received: int = 0
    frames_watched: int = 0
    frames_skipped: int = 0
    frames_dropped: int = 0
    frames_rejected: int = 0
    frames_waiting: int = 0
    epochs: int = 0
    segments: int = 0
    notes_written: int = 0
    notes_skipped: int = 0
    notes_waiting: int = 0
    answers_done: int = 0
    answers_failed: int = 0
    answers_cancelled: int = 0
    answers_active: int = 0
    answers_waiting: int = 0
    sessions: int = 0
    watches: int = 0
    steps: int = 0
    step_tokens: int = 0
    tokens_seen: int = 0
    tokens_dropped: int = 0
    memory_bytes: int = 0
    session_bytes: int = 0
    page_bytes: int = 0
    memory_tokens: int = 0
    newest_ns: int = 0
    ingest_lag_s: float = 0.0
    first_token_s: float = 0.0
    answer_s: float = 0.0
    last_error: str = ''
