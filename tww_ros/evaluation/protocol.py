"""What is asked about which tabletop stream, and when: planned before any model runs.

In: a Protocol and the engine's watch settings. Out: StreamPlans: a world that nobody trained on,
the stamps of the frames to feed, the segments that the engine will cut them into with their
perfect notes, and moments with questions. The same arguments give the same plans, so every row of
a table is about the same questions. It knows nothing of models, and runs no engine: the engine's
own FrameIntake cuts the stamps, and the runner checks that the engine did the same.

    lot      of each stream                                              asked
    multi    sessions of 8 to 16 rounds over all moments, follow-ups     round after round
    single   every round of `multi` once more, spelt out, by itself      in a session of its own
    present  more questions about now, until there are enough            in a session of its own
    far      more about what is `FAR` segments back, until enough        in a session of its own

A round of `multi` and its twin in `single` have the same answer, the same choices and the same
moment, so the difference between the two is what a conversation costs or gives, and nothing else.
'And where is it now?' becomes 'Where is the red ball now?' there. Questions of `present` and `far`
are drawn like those of `single` that would count among them, but none comes twice at a moment, or
(`far`, whose answers stay the same) in a stream.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tww_ros.config import WatchConfig
from tww_ros.errors import ConfigError
from tww_ros.types import NS_PER_S, Frame
from tww_ros.video.segmentation import Event, FrameIntake, Patch, PatchReady
from tww_ros.world.known import TableQuestion
from tww_ros.world.notes import Chronicle
from tww_ros.world.questions import KINDS_OF, Asker
from tww_ros.world.table import TEST_SEEDS, Episode, Pace, simulate

CAMERA = 'tabletop'
LOTS = ('multi', 'single', 'present', 'far')
# Segments between the newest one and the newest proof of a question of the lot `far`, at least.
FAR = 60
ROUNDS = (8, 16)
FOLLOW_UP_SHARE = 0.3
CHOICE_SHARE = 0.5
# Mean seconds between events, and when the first frame is taken.
GAP_S = (1.0, 5.0)
OFFSET_S = (0.1, 0.6)
# A moment waits until no hand is at work; the world goes on for this long behind the last one.
SPARE_S = 30.0
TRIES = 40
# A follow-up for somebody who has not heard what went before.
SPELT_OUT = {
    'where': 'Where is the {name} now?', 'before': 'Where was the {name} before it was moved?',
    'when': 'When was the {name} put down?', 'is_covered': 'Is the {name} covered?',
    'is_there': 'Is the {name} on the table now?',
}
_BLANK = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class Protocol:
    """questions: of each lot. segments: of each stream, about. moments: of each stream."""

    seed: int = 0
    questions: int = 1_000
    streams: int = 40
    segments: int = 130
    moments: int = 6
    size_px: int = 192

    def __post_init__(self) -> None:
        for name, low in (('questions', 1), ('streams', 1), ('moments', 1), ('size_px', 32)):
            if getattr(self, name) < low:
                raise ConfigError(f'{name}: expected {low} or more, got {getattr(self, name)}')
        if self.segments < 2 * self.moments:
            raise ConfigError(f'segments: expected at least two for each of the {self.moments} '
                              f'moments, got {self.segments}; ask for longer streams')


@dataclass(frozen=True)
class Planned:
    """One question. session: unique within its stream; number: of the round in it, from 0.

    distance: segments from the newest one back to the newest that proves the answer; None when
    none does. pair: the same for a round of `multi` and its twin in `single`.
    """

    lot: str
    session: str
    number: int
    question: TableQuestion
    distance: int | None
    pair: int = -1


@dataclass(frozen=True)
class Moment:
    """Questions asked when `frames` frames were fed; `segment` is the newest one then."""

    frames: int
    segment: int
    questions: tuple[Planned, ...]


@dataclass(frozen=True)
class PlannedSegment:
    """Stamps of its frames in ns, and what should be noted about it."""

    stamps_ns: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class StreamPlan:
    """One stream from its first frame to its last moment."""

    episode: Episode
    size_px: int
    stamps_ns: tuple[int, ...]
    segments: tuple[PlannedSegment, ...]
    moments: tuple[Moment, ...]


def plan_streams(protocol: Protocol, watch: WatchConfig, patch_frames: int) -> list[StreamPlan]:
    """All streams of a protocol. patch_frames: the model's temporal patch size."""
    seeds = random.Random(f'tabletop {protocol.seed}').sample(TEST_SEEDS, protocol.streams)
    have: Counter[str] = Counter()
    return [_StreamPlanner(protocol, watch, patch_frames, number, seed, have).run()
            for number, seed in enumerate(seeds)]


def distance(question: TableQuestion, chronicle: Chronicle) -> int | None:
    """Segments from the newest one back to the newest that proves the answer."""
    proof, thing = list(question.proof), question.subject
    if question.kind == 'ever' and proof and thing is not None:
        # Not the first event alone: whatever shows the thing proves that it has been there.
        proof += [seen.segment for seen in chronicle.seen
                  if thing in (seen.event.thing, seen.event.other)]
        place = chronicle.state.place_of(thing)
        if place is not None and place not in chronicle.state.covered:
            return 0
    return len(chronicle.notes) - 1 - max(proof) if proof else None


class Cutter:
    """Cuts stamps into segments as the engine does, and keeps the perfect notes about them."""

    def __init__(self, episode: Episode, watch: WatchConfig, patch_frames: int) -> None:
        self.chronicle = Chronicle(episode)
        self.segments: list[PlannedSegment] = []
        self._intake = FrameIntake(watch, patch_frames)
        self._patches: list[Patch] = []

    def add(self, stamp_ns: int) -> None:
        """Take one frame."""
        self._take(self._intake.add(Frame(stamp_ns, CAMERA, _BLANK)).events)

    def close(self) -> None:
        """Close the open segment, as a question does."""
        self._take(self._intake.close('question'))

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, PatchReady):
                self._patches.append(event.patch)
                continue
            stamps_ns = tuple(frame.stamp_ns for patch in self._patches for frame in patch.frames)
            first_s = (self._patches[0].stamp_ns - self._intake.clock.t0_ns) / NS_PER_S
            # A model can tell no more than the one decimal that it is shown.
            note = self.chronicle.add([stamp / NS_PER_S for stamp in stamps_ns],
                                      float(f'{first_s:.1f}'))
            self.segments.append(PlannedSegment(stamps_ns, note))
            self._patches.clear()


@dataclass
class _Session:
    """rounds: how many at each moment."""

    name: str
    rounds: Counter[int]
    asked: int = 0
    before: TableQuestion | None = None


@dataclass
class _StreamPlanner:
    protocol: Protocol
    watch: WatchConfig
    patch_frames: int
    number: int
    seed: int
    # Questions of each lot so far, over all streams.
    have: Counter[str]
    _asked: int = 0
    _moments: list[Moment] = field(default_factory=list)
    _far_texts: set[str] = field(default_factory=set)

    def run(self) -> StreamPlan:
        protocol = self.protocol
        self._rng = rng = random.Random(f'tabletop {protocol.seed} {self.seed}')
        period_s = 1.0 / self.watch.sample_fps
        frames = protocol.segments * math.ceil(self.watch.segment_s * self.watch.sample_fps)
        episode = simulate(self.seed, frames * period_s + SPARE_S,
                           Pace(gap_s=rng.uniform(*GAP_S)))
        offset_s = rng.uniform(*OFFSET_S)
        wanted = [int(frames * rng.uniform(part + 0.3, part + 1.0) / protocol.moments)
                  for part in range(protocol.moments - 1)] + [frames - 1]
        sessions = self._sessions()
        cutter = Cutter(episode, self.watch, self.patch_frames)
        stamps_ns: list[int] = []
        while len(self._moments) < len(wanted):
            at_s = offset_s + len(stamps_ns) * period_s
            stamps_ns.append(round(at_s * NS_PER_S))
            cutter.add(stamps_ns[-1])
            due = len(stamps_ns) > wanted[len(self._moments)]
            if due and (episode.event_at(at_s) is None or at_s > episode.duration_s):
                cutter.close()
                questions = self._questions(cutter.chronicle, sessions)
                self._moments.append(Moment(len(stamps_ns), len(cutter.segments) - 1,
                                            tuple(questions)))
        return StreamPlan(episode, protocol.size_px, tuple(stamps_ns), tuple(cutter.segments),
                          tuple(self._moments))

    def _sessions(self) -> list[_Session]:
        """As many as this stream needs for its share of the rounds."""
        protocol, sessions = self.protocol, []
        due = math.ceil(protocol.questions * (self.number + 1) / protocol.streams)
        while self.have['multi'] < due:
            count = self._rng.randint(*ROUNDS)
            rounds = Counter(self._rng.choices(range(protocol.moments), k=count))
            sessions.append(_Session(f'multi {len(sessions)}', rounds))
            self.have['multi'] += count
        return sessions

    def _questions(self, chronicle: Chronicle, sessions: list[_Session]) -> list[Planned]:
        asker = Asker(chronicle, self._rng)
        planned: list[Planned] = []
        for session in sessions:
            for _ in range(session.rounds[len(self._moments)]):
                planned += self._round(asker, chronicle, session)
        singles = [p.question for p in planned if p.lot == 'single']
        for lot, family, texts, fits in (
                ('present', 'present', set(), lambda made: True),
                ('far', 'backward', self._far_texts,
                 lambda made: is_far(distance(made, chronicle)))):
            texts |= {question.text for question in singles}
            self.have[lot] += sum(made.family == family and fits(made) for made in singles)
            for made in self._more(asker, lot, family, fits, texts):
                planned.append(self._single(lot, self._maybe_choices(made), chronicle))
                self.have[lot] += 1
        return planned

    def _round(self, asker: Asker, chronicle: Chronicle, session: _Session) -> list[Planned]:
        """A round of a session, and its twin."""
        before = session.before
        if (before is not None and before.subject is not None
                and self._rng.random() < FOLLOW_UP_SHARE):
            made = asker.follow_up(before.subject)
        else:
            made = asker.ask()
        session.before = made
        made = self._maybe_choices(made)
        twin = self._single('single', spelt_out(asker, made), chronicle)
        planned = Planned('multi', session.name, session.asked, made, twin.distance, twin.pair)
        session.asked += 1
        return [planned, twin]

    def _more(self, asker: Asker, lot: str, family: str, fits: Callable[[TableQuestion], bool],
              texts: set[str]) -> list[TableQuestion]:
        """As many questions of a family as are due, with texts that are not among `texts` yet."""
        protocol, kinds = self.protocol, KINDS_OF[family]
        progress = (self.number + (len(self._moments) + 1) / protocol.moments) / protocol.streams
        # Proofs far back exist in the second half of a stream only; no moment takes all of them.
        most = math.ceil(2 * protocol.questions / (protocol.streams * protocol.moments))
        due = min(most, math.ceil(protocol.questions * progress) - self.have[lot])
        found: list[TableQuestion] = []
        for _ in range(TRIES * max(0, due)):
            made = asker.make(self._rng.choice(kinds))
            if (made is not None and made.family == family and made.text not in texts
                    and fits(made)):
                texts.add(made.text)
                found.append(made)
                if len(found) == due:
                    break
        return found

    def _single(self, lot: str, question: TableQuestion, chronicle: Chronicle) -> Planned:
        self._asked += 1
        return Planned(lot, f'{lot} {self._asked}', 0, question, distance(question, chronicle),
                       self._asked)

    def _maybe_choices(self, question: TableQuestion) -> TableQuestion:
        if self._rng.random() < CHOICE_SHARE:
            return question.with_choices(self._rng)
        return question


def is_far(back: int | None) -> bool:
    """Whether a proof that many segments back counts as far."""
    return back is not None and back >= FAR


def spelt_out(asker: Asker, question: TableQuestion) -> TableQuestion:
    """A follow-up with its subject named, same choices; any other question as it is."""
    if question.family != 'follow-up':
        return question
    kind = question.kind.removeprefix('and_')
    made: TableQuestion = getattr(asker, kind)(question.subject)
    return replace(made, text=SPELT_OUT[kind].format(name=question.subject.name),
                   choices=question.choices)


def recent(segments: Sequence[PlannedSegment], newest: int, frames: int) -> tuple[int, int]:
    """(start_ns, end_ns) of the newest segments that together have at most `frames` frames."""
    first, count = newest, len(segments[newest].stamps_ns)
    while first > 0 and count + len(segments[first - 1].stamps_ns) <= frames:
        first -= 1
        count += len(segments[first].stamps_ns)
    return segments[first].stamps_ns[0], segments[newest].stamps_ns[-1]
