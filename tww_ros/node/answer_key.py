"""The answer key of the demo: what the node should know about a tabletop, from its ground truth.

In: the Episode that the camera simulates, the stamps and world times of the frames that it
published, and the segments that the node cut. Out: a Chronicle: exactly what could be seen in
those segments, with the times that their notes should tell. It knows nothing of ROS, of models
and of answers, and nothing of it reaches the node.

    published   . . . . . . . . . . . . . . . . . . . . . . . . .   stamps and world times
    watched     ^                   ^                   ^           as the node's FrameSampler
    segments    [start           end]                   open        from the node; the open one too
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tww_ros.errors import ReplayError
from tww_ros.types import NS_PER_S, SegmentInfo
from tww_ros.video.sampling import FrameSampler
from tww_ros.world.notes import Chronicle
from tww_ros.world.table import Episode

# With more frames than two, a segment's first and last stamp do not tell all of them.
MOST_FRAMES = 2


class AnswerKey:
    """Collects what was published; not for several threads at once."""

    def __init__(self, episode: Episode, sample_fps: float) -> None:
        self.episode = episode
        self.sample_fps = sample_fps
        # Stamp → seconds of the world, in the order of publication.
        self._world_s: dict[int, float] = {}

    def publish(self, stamp_ns: int, world_s: float) -> None:
        """Take note of a frame."""
        self._world_s[stamp_ns] = world_s

    @property
    def frames(self) -> int:
        """Frames published."""
        return len(self._world_s)

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest frame; 0 before the first."""
        return next(reversed(self._world_s), 0)

    def world_s(self, stamp_ns: int) -> float:
        """World time of a frame; ReplayError when none was published with that stamp."""
        if stamp_ns not in self._world_s:
            raise ReplayError(f'expected the stamp of one of {self.frames} frames that the camera '
                              f'published, got {stamp_ns} ns; does another camera publish on the '
                              'same topic?')
        return self._world_s[stamp_ns]

    def watched_ns(self, first_ns: int) -> list[int]:
        """Stamps of the frames that a node watches whose first frame has this stamp."""
        sampler = FrameSampler(self.sample_fps)
        return [stamp_ns for stamp_ns in self._world_s
                if stamp_ns >= first_ns and sampler.accept(stamp_ns)]

    def chronicle(self, segments: Sequence[SegmentInfo], until_ns: int) -> Chronicle:
        """What could be seen until then; what is watched and not yet in a segment is one more.

        segments: of the one camera, from its first one on.
        """
        first_ns = segments[0].start_ns
        cuts = [_stamps_ns(segment) for segment in segments if segment.end_ns <= until_ns]
        closed_ns = cuts[-1][-1] if cuts else first_ns - 1
        rest = [stamp_ns for stamp_ns in self.watched_ns(first_ns)
                if closed_ns < stamp_ns <= until_ns]
        cuts += [tuple(rest[at:at + MOST_FRAMES]) for at in range(0, len(rest), MOST_FRAMES)]
        chronicle = Chronicle(self.episode)
        for cut in cuts:
            shown_s = ((cut[0] + cut[-1]) // 2 - first_ns) / NS_PER_S
            # A model can tell no more than the one decimal that it is shown.
            chronicle.add([self.world_s(stamp_ns) for stamp_ns in cut], float(f'{shown_s:.1f}'))
        return chronicle

    def longest_gap_s(self, segments: Sequence[SegmentInfo]) -> float:
        """The longest stretch of all that was published without a watched frame."""
        stamps = [next(iter(self._world_s)),
                  *(stamp_ns for segment in segments for stamp_ns in _stamps_ns(segment)),
                  self.newest_ns]
        return max(after - before for before, after in itertools.pairwise(stamps)) / NS_PER_S


def same_knowledge(one: Chronicle, other: Chronicle) -> bool:
    """Whether a question has the same answer after both: same events, same times told."""
    return one.settled and other.settled and [(seen.event, seen.at_s) for seen in one.seen] == [
        (seen.event, seen.at_s) for seen in other.seen]


def _stamps_ns(segment: SegmentInfo) -> tuple[int, ...]:
    if segment.frames > MOST_FRAMES:
        raise ReplayError(f'segment {segment.id}: expected at most {MOST_FRAMES} frames, got '
                          f'{segment.frames}; run the node with the settings that the embedded '
                          'model was trained with')
    return (segment.start_ns, segment.end_ns)[:segment.frames]
