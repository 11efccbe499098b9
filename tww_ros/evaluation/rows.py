"""The rows of the table: which model, with which settings, is asked what; and what comes out.

In: EvalOptions. Out: an Evaluation, everything that was asked, answered and noted. Rows that watch
the same way (same model, same settings) share the watched streams, so a stream is watched once
for all the questions that can be asked of it.

    row             what is different
    single          every question in a session of its own
    multi           sessions of 8 to 16 rounds with follow-ups
    no-notes        no notes are written; video as far as it is resident
    notes-only      notes, and no segment's video
    recent-4        no notes, only the last 4 frames, each segment read by itself
    long-reasoning  another model, trained without notes: no notes, all video, long answers (multi)
    stages          other checkpoints, each as `single` and as `multi`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from tww_ros.config import EngineConfig, WatchConfig
from tww_ros.errors import ConfigError
from tww_ros.evaluation.protocol import Protocol, StreamPlan, plan_streams
from tww_ros.evaluation.runner import MODES, OFFLINE, Outcome, Watched, run_stream
from tww_ros.model.protocol import StepModel

SINGLE_LOTS = ('single', 'present', 'far')
# A round's twin in `single` is what it is compared with.
MULTI_LOTS = ('multi', 'single')
RECENT_FRAMES = 4
_NO_NOTES = {'note.enabled': False}
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    'no-notes': _NO_NOTES,
    # Fewer tokens than any segment has.
    'notes-only': {'memory.resident_tokens': 16},
    f'recent-{RECENT_FRAMES}': {**_NO_NOTES, 'memory.read_window_tokens': 0},
}
LONG_REASONING: Mapping[str, Any] = {
    **_NO_NOTES, 'memory.resident_tokens': 1_048_576, 'answer.max_new_tokens': 2_048}
ROWS = ('single', 'multi', *ABLATIONS, 'long-reasoning', 'stages')


@dataclass(frozen=True)
class EvalOptions:
    """rows: of ROWS; empty = all that can be run. settings: the user's own, for every row.

    long_model: for long-reasoning. stage_models: name → checkpoint, for stages.
    """

    model: str
    protocol: Protocol = field(default_factory=Protocol)
    rows: tuple[str, ...] = ()
    mode: str = 'settled'
    settings: Mapping[str, Any] = field(default_factory=dict)
    long_model: str = ''
    stage_models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        can = {'long-reasoning': bool(self.long_model), 'stages': bool(self.stage_models)}
        unknown = [row for row in self.rows if row not in ROWS]
        if unknown:
            raise ConfigError(f'unknown row {unknown[0]!r}; expected some of {", ".join(ROWS)}')
        if self.mode not in MODES:
            raise ConfigError(f'mode: expected one of {", ".join(MODES)}, got {self.mode!r}')
        for row, flag in (('long-reasoning', '--long-model DIR'),
                          ('stages', '--stage-model NAME=DIR')):
            if row in self.rows and not can[row]:
                raise ConfigError(f'the row {row!r} needs a model of its own; add {flag}')
        if not self.rows:
            rows = tuple(row for row in ROWS if can.get(row, True))
            object.__setattr__(self, 'rows', rows)


@dataclass(frozen=True)
class Watch:
    """One way to watch all streams: what rows with the same Watch share."""

    model: str
    settings: tuple[tuple[str, Any], ...] = ()
    recent_frames: int = 0


@dataclass(frozen=True)
class Row:
    """name: prefix of its metrics. lot: whose accuracy is the row's. lots: all that is asked."""

    name: str
    watch: Watch
    lot: str
    lots: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """What came of all rows; `streams` has one Watched per stream."""

    rows: tuple[Row, ...]
    plans: Mapping[Watch, list[StreamPlan]]
    streams: Mapping[Watch, list[Watched]]

    def outcomes(self, row: Row, *lots: str) -> list[Outcome]:
        """A row's outcomes, of these lots only if any are named."""
        wanted = lots or row.lots
        return [outcome for watched in self.streams[row.watch] for outcome in watched.outcomes
                if outcome.planned.lot in wanted]


def make_rows(options: EvalOptions) -> tuple[Row, ...]:
    """The rows to run, in the order of the table."""
    rows: list[Row] = []
    plain = Watch(options.model)
    for name in options.rows:
        if name == 'single':
            rows.append(Row('single', plain, 'single', SINGLE_LOTS))
        elif name == 'multi':
            rows.append(Row('multi', plain, 'multi', MULTI_LOTS))
        elif name == 'long-reasoning':
            watch = Watch(options.long_model, tuple(LONG_REASONING.items()))
            rows.append(Row('long_reasoning', watch, 'multi', ('multi',)))
        elif name == 'stages':
            for stage, model in options.stage_models.items():
                rows += [Row(f'stage_{stage}_single', Watch(model), 'single', SINGLE_LOTS),
                         Row(f'stage_{stage}_multi', Watch(model), 'multi', MULTI_LOTS)]
        else:
            frames = RECENT_FRAMES if name.startswith('recent') else 0
            watch = Watch(options.model, tuple(ABLATIONS[name].items()), frames)
            rows.append(Row(name.replace('-', '_'), watch, 'single', SINGLE_LOTS))
    return tuple(rows)


def config_of(model: StepModel, watch: Watch, options: EvalOptions) -> EngineConfig:
    """The model's own settings, what the evaluation needs, the row's, and the user's last."""
    return EngineConfig.from_flat({
        **model.settings, **OFFLINE, 'step.deterministic': options.mode == 'deterministic',
        **dict(watch.settings), **options.settings})


def evaluate(options: EvalOptions, load: Callable[[str], StepModel]) -> Evaluation:
    """Run all rows; `load` makes a model of its name, and only one is kept at a time."""
    rows = make_rows(options)
    plans: dict[Watch, list[StreamPlan]] = {}
    streams: dict[Watch, list[Watched]] = {}
    planned: dict[tuple[WatchConfig, int], list[StreamPlan]] = {}
    for name in dict.fromkeys(row.watch.model for row in rows):
        model = load(name)
        for watch in dict.fromkeys(row.watch for row in rows if row.watch.model == name):
            config = config_of(model, watch, options)
            key = config.watch, model.temporal_patch_size
            if key not in planned:
                planned[key] = plan_streams(options.protocol, *key)
            plans[watch] = planned[key]
            sharing = [row for row in rows if row.watch == watch]
            streams[watch] = list(_run(model, config, plans[watch], sharing, options.mode))
    return Evaluation(rows, plans, streams)


def _run(model: StepModel, config: EngineConfig, plans: list[StreamPlan], rows: list[Row],
         mode: str) -> Iterator[Watched]:
    lots = {lot for row in rows for lot in row.lots}
    total = sum(planned.lot in lots for plan in plans for moment in plan.moments
                for planned in moment.questions)
    right = done = 0
    # Off when nobody watches.
    with tqdm(total=total, unit='question', disable=None,
              desc=', '.join(row.name for row in rows)) as bar:
        for number, plan in enumerate(plans):
            watched = run_stream(model, config, plan, tuple(lots), stream=number,
                                 live=mode == 'live', recent_frames=rows[0].watch.recent_frames)
            done += len(watched.outcomes)
            right += sum(outcome.right for outcome in watched.outcomes)
            bar.set_postfix(right=f'{right / max(1, done):.1%}', refresh=False)
            bar.update(len(watched.outcomes))
            yield watched
