"""Several processes train as one: each has its own batches, and their gradients are averaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from tww_ros.training.embedded import settings, untrained
from tww_ros.training.forward import forward, training_attention
from tww_ros.training.recipes import TabletopBatches
from tww_ros.training.trainer import Stage

RATE, TOKENS, STAGE = 1e-3, 60, 'long'
TIMEOUT_S = 300


def test_two_processes_take_the_mean_of_their_gradients(tmp_path: Path) -> None:
    """One of them without a picture, so that its vision tower has no gradients at all."""
    seed = next(seed for seed in range(200) if _one_of_two_is_blind(seed))
    told = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
         '-m', 'tww_ros.cli', 'train', '--out', str(tmp_path), '--stages', STAGE, '--steps', '1',
         '--tokens', str(TOKENS), '--rate', str(RATE), '--seed', str(seed), '--workers', '0',
         '--threads', '1', '--precision', 'no', '--optimizer', 'adamw'],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
             'GLOO_SOCKET_IFNAME': 'lo'},
        capture_output=True, text=True, timeout=TIMEOUT_S)
    assert told.returncode == 0, told.stderr[-3_000:]
    trained = load_file(tmp_path / 'checkpoints' / 'step-0000001' / 'model.safetensors')

    model, batches = untrained(seed), _batches(seed)
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    gradients = [_gradients(model, batches.batch(STAGE, number)) for number in (0, 1)]
    mean = {name: sum(each.get(name, 0.0) for each in gradients) / 2 for name in before}
    clip = min(1.0, 1.0 / float(torch.cat([torch.as_tensor(g).flatten()
                                           for g in mean.values()]).norm()))
    rate = Stage(STAGE, 1, RATE, warmup=1).rate_at(0)
    wrong = moved = 0
    for name, old in before.items():
        gradient = mean[name] * clip
        # Adam's first step, by its definition; where the gradient is noise, so is its sign.
        clear = torch.as_tensor(gradient).abs() > 1e-6
        step = rate * gradient / (torch.as_tensor(gradient).abs() + 1e-8)
        kept = old * (1.0 - rate * 0.05) if old.dim() > 1 else old
        far = (trained[name] - (kept - step)).abs() > 0.02 * rate
        wrong += int((far & clear).sum())
        moved += int(clear.sum())
    assert moved > 100_000
    assert wrong < 0.002 * moved, (wrong, moved)


def _batches(seed: int) -> TabletopBatches:
    return TabletopBatches(untrained(), settings(), TOKENS, seed)


def _one_of_two_is_blind(seed: int) -> bool:
    batches = _batches(seed)
    return (batches.batch(STAGE, 0).pixels is None) != (batches.batch(STAGE, 1).pixels is None)


def _gradients(model, batch) -> dict[str, torch.Tensor]:
    model.hf.train()
    model.hf.zero_grad()
    with training_attention(model.hf):
        functional.cross_entropy(forward(model.hf, batch).float(), batch.targets).backward()
    return {name: p.grad.clone() for name, p in model.hf.named_parameters() if p.grad is not None}
