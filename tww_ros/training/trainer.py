"""The training loop: batches in, checkpoints, curves and a log out.

In: a model, stages (how many steps of which samples), a folder. Out, in that folder:

    checkpoints/step-000500/   model.safetensors, optimizer.safetensors, state.json
    log.jsonl                  one line per report: loss, held-out accuracy by kind
    curves.png

A checkpoint is written beside its place and renamed when it is whole; a run that was killed at any
moment goes on from the last whole one, with the batches that it would have had. Batch k of a run
depends on the seed and on k alone. Built on accelerate: of n processes each takes every n-th
batch, their gradients are averaged, and the first one writes.

It knows nothing of worlds: `Batches` gives it what to learn from.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tww_ros.errors import TrainingError
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.training.curves import draw_curves
from tww_ros.training.forward import Batch, forward, fused, training_attention
from tww_ros.training.heap import give_back
from tww_ros.training.optimizers import optimizers_of

GIVE_BACK_EVERY = 5


class Batches(Protocol):
    """Where batches come from; must be picklable for worker processes."""

    def batch(self, stage: str, number: int) -> Batch:
        """Batch `number` of a stage; the same arguments give the same batch."""

    def held_out(self, stage: str, number: int) -> Batch:
        """One that is never trained on."""


@dataclass(frozen=True)
class Stage:
    """A part of the training. rate: the highest learning rate; it rises over `warmup` steps and
    falls along a cosine to `final` of itself."""

    name: str
    steps: int
    rate: float
    warmup: int = 100
    final: float = 0.05

    def rate_at(self, step: int) -> float:
        """Learning rate of one step, counted within the stage."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        return self.rate * rise * (self.final + (1.0 - self.final) * fall)


@dataclass(frozen=True)
class TrainerConfig:
    """Everything but the data. precision: 'auto', 'no' or 'bf16'; auto: bf16 where it is quick
    (CUDA, CPUs with AMX). workers: processes that make batches. fuse: see forward.fused. muon:
    see `training.optimizers`."""

    folder: Path
    stages: tuple[Stage, ...]
    precision: str = 'auto'
    workers: int = 1
    fuse: bool = False
    report_every: int = 25
    check_every: int = 200
    check_batches: int = 4
    save_every: int = 200
    keep: int = 2
    muon: bool = False
    weight_decay: float = 0.05
    clip: float = 1.0


class Trainer:
    """Runs the stages one after the other, from where the folder's last checkpoint stands."""

    def __init__(self, model: VideoLanguageModel, batches: Batches, config: TrainerConfig,
                 after_stage: Callable[[str], None] = lambda name: None) -> None:
        """after_stage is called with a stage's name when it has ended, in the main process."""
        self.model = model
        self._batches = batches
        self._config = config
        self._after_stage = after_stage
        self._accelerator = Accelerator(mixed_precision=_precision(config.precision),
                                        cpu=model.device.type == 'cpu',
                                        # A batch may have no pictures, another one's has.
                                        kwargs_handlers=[DistributedDataParallelKwargs(
                                            find_unused_parameters=True)])
        self._forward, *self._optimizers = self._accelerator.prepare(
            _Forward(model.hf), *optimizers_of(model.hf, muon=config.muon,
                                               weight_decay=config.weight_decay))
        self.step = 0
        # Time spent in training, over all starts of the run.
        self.seconds = 0.0
        self._since_s = time.monotonic()
        config.folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def hours(self) -> float:
        """Time spent in training, over all starts of the run."""
        return self._clock() / 3_600

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self._config.stages)

    def run(self) -> None:
        """Train to the end."""
        main = self._accelerator.is_main_process
        bar = tqdm(total=self.total_steps, initial=self.step, disable=not main, unit='step')
        first = 0
        for stage in self._config.stages:
            if self.step < first + stage.steps:
                self._run_stage(stage, first, bar)
                if main:
                    self._after_stage(stage.name)
            first += stage.steps
        bar.close()

    def _run_stage(self, stage: Stage, first: int, bar: tqdm) -> None:
        config, accelerator = self._config, self._accelerator
        losses: list[torch.Tensor] = []
        with training_attention(self.model.hf), (
                fused() if config.fuse else contextlib.nullcontext()):
            for batch in self._stream(stage, self.step - first):
                self.model.hf.train()
                rate = stage.rate_at(self.step - first)
                for optimizer in self._optimizers:
                    optimizer.zero_grad()
                    for group in optimizer.param_groups:
                        group['lr'] = rate
                logits = self._forward(batch)
                # Of a user's samples some may teach nothing: no loss, and no reason to stop.
                loss = (functional.cross_entropy(logits.float(), batch.targets)
                        if len(batch.targets) else logits.float().sum())
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(self.model.hf.parameters(), config.clip)
                for optimizer in self._optimizers:
                    optimizer.step()
                loss = loss.detach()
                losses.append(loss)
                self.step += 1
                if self.step % GIVE_BACK_EVERY == 0:
                    give_back()
                bar.update()
                last = self.step == first + stage.steps
                if not math.isfinite(float(loss)):
                    raise TrainingError(f'step {self.step}: the loss is {float(loss)}; lower the '
                                        'learning rate, or resume from an earlier checkpoint')
                if self.step % config.report_every == 0 or last:
                    mean = float(torch.stack(losses).mean())
                    losses.clear()
                    entry = {'step': self.step, 'stage': stage.name, 'loss': mean,
                             'seconds': round(self._clock(), 1)}
                    if self.step % config.check_every == 0 or last:
                        entry['held_out'] = self._check(stage)
                    self._report(entry, bar)
                if accelerator.is_main_process and (self.step % config.save_every == 0 or last):
                    self.save()

    def _clock(self) -> float:
        now_s = time.monotonic()
        self.seconds, self._since_s = self.seconds + now_s - self._since_s, now_s
        return self.seconds

    def _stream(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Batches of a stage from step `start` on, made ahead by worker processes."""
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        numbers = range(start * ranks + rank, stage.steps * ranks, ranks)
        loader = DataLoader(
            _Numbered(self._batches, stage.name, numbers), batch_size=None,
            num_workers=self._config.workers, worker_init_fn=_one_thread,
            prefetch_factor=4 if self._config.workers else None)
        for batch in loader:
            yield batch.to(self._accelerator.device)

    @torch.no_grad()
    def _check(self, stage: Stage) -> dict[str, float]:
        """Accuracy on samples never trained on: share of notes and answers with no wrong token,
        given that everything before each token is right."""
        self.model.hf.eval()
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for number in range(self._config.check_batches):
            batch = self._batches.held_out(stage.name, number).to(self._accelerator.device)
            right = self._forward(batch).argmax(-1) == batch.targets
            for kind, whole in accuracy(batch, right):
                counts[kind][0] += whole
                counts[kind][1] += 1
        return {kind: good / count for kind, (good, count) in sorted(counts.items())}

    def _report(self, entry: dict, bar: tqdm) -> None:
        if not self._accelerator.is_main_process:
            return
        shown = {'stage': entry['stage'], 'loss': f'{entry["loss"]:.4f}'}
        shown |= {kind: f'{entry["held_out"][kind]:.3f}' for kind in ('note', 'answer', 'final')
                  if kind in entry.get('held_out', {})}
        bar.set_postfix(shown)
        with (self._config.folder / 'log.jsonl').open('a') as log:
            log.write(json.dumps(entry) + '\n')
        if 'held_out' in entry:
            draw_curves(self._config.folder / 'log.jsonl', self._config.folder / 'curves.png')

    # Checkpoints

    def save(self) -> Path:
        """Write a checkpoint; a kill in between leaves the one before."""
        folder = self._config.folder / 'checkpoints'
        place = folder / f'step-{self.step:07d}'
        partial = folder / f'{place.name}.partial'
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        hf = self.model.hf
        weights = {name: p.detach().cpu().contiguous() for name, p in hf.named_parameters()}
        save_file(weights, partial / 'model.safetensors')
        save_file(_flatten([optimizer.state_dict()['state'] for optimizer in self._optimizers]),
                  partial / 'optimizer.safetensors')
        (partial / 'state.json').write_text(json.dumps(
            {'step': self.step, 'seconds': self._clock()}))
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        for old in self.checkpoints()[:-self._config.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def checkpoints(self) -> list[Path]:
        """The whole ones, oldest first."""
        found = (self._config.folder / 'checkpoints').glob('step-*')
        return sorted(path for path in found if path.suffix != '.partial')

    def _resume(self) -> None:
        for place in reversed(self.checkpoints()):
            try:
                state = json.loads((place / 'state.json').read_text())
                step = state['step']
                weights = load_file(place / 'model.safetensors')
                moments = load_file(place / 'optimizer.safetensors')
            except Exception as error:
                tqdm.write(f'{place} cannot be read ({error}); trying the one before')
                continue
            known = dict(self.model.hf.named_parameters())
            if set(weights) != set(known):
                raise TrainingError(f'{place} is of another model; expected the same tensors, got '
                                    f'{len(set(weights) ^ set(known))} others; choose another '
                                    'folder')
            with torch.no_grad():
                for name, value in weights.items():
                    known[name].copy_(value)
            try:
                states = _unflatten(moments)
            except ValueError:
                raise TrainingError(f'{place} was written by an earlier tww train, and its '
                                    'optimizer cannot be read; choose another folder') from None
            if len(states) != len(self._optimizers):
                raise TrainingError(f'{place} is of {len(states)} optimizers, expected '
                                    f'{len(self._optimizers)}; choose another folder')
            for optimizer, moments_of in zip(self._optimizers, states, strict=True):
                optimizer.load_state_dict({**optimizer.state_dict(), 'state': moments_of})
            self.step, self.seconds = step, state.get('seconds', 0.0)
            break
        if self._accelerator.is_main_process:
            self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        """Drop log lines of steps that will be done again."""
        log = self._config.folder / 'log.jsonl'
        if log.exists():
            kept = [line for line in log.read_text().splitlines()
                    if line.endswith('}') and json.loads(line)['step'] <= step]
            log.write_text(''.join(line + '\n' for line in kept))


def accuracy(batch: Batch, right: torch.Tensor) -> Iterator[tuple[str, bool]]:
    """(kind, whether every learnt token is right) of each note and answer: 'note', 'note:put',
    'answer', 'final' (the answer without its reasoning), 'final:where:open', …"""
    spans, right, final = batch.spans.tolist(), right.tolist(), batch.final.tolist()
    whole: dict[int, bool] = {}
    ended: dict[int, bool] = {}
    for span, good, of_answer in zip(spans, right, final, strict=True):
        whole[span] = whole.get(span, True) and good
        if of_answer:
            ended[span] = ended.get(span, True) and good
    for span, good in whole.items():
        kind = batch.what[span]
        yield kind.split(':')[0], good
        if kind.startswith('note:'):
            yield kind, good
    for span, good in ended.items():
        kind = batch.what[span].split(':')
        yield 'final', good
        yield f'final:{kind[-1]}', good
        yield f'final:{kind[1]}', good


class _Forward(torch.nn.Module):
    """The training forward as a module, for accelerate."""

    def __init__(self, hf: torch.nn.Module) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, batch: Batch) -> torch.Tensor:
        return forward(self.hf, batch)


class _Numbered(Dataset):
    def __init__(self, batches: Batches, stage: str, numbers: range) -> None:
        self._batches, self._stage, self._numbers = batches, stage, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Batch:
        return self._batches.batch(self._stage, self._numbers[index])


def _one_thread(worker: int) -> None:
    import cv2
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy('file_system')


def _precision(name: str) -> str:
    if name != 'auto':
        return name
    quick = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
    return 'bf16' if quick else 'no'


def _flatten(states: list[dict[int, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    return {f'{optimizer}.{index}.{name}': torch.as_tensor(value).detach().cpu().contiguous()
            for optimizer, state in enumerate(states)
            for index, entry in state.items() for name, value in entry.items()}


def _unflatten(flat: dict[str, torch.Tensor]) -> list[dict[int, dict[str, torch.Tensor]]]:
    states: dict[int, dict[int, dict[str, torch.Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for key, value in flat.items():
        optimizer, index, name = key.split('.', 2)
        states[int(optimizer)][int(index)][name] = value
    return [dict(states[optimizer]) for optimizer in sorted(states)]
