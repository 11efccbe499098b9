"""Which optimizer takes which weights, and what a step of Muon does."""

from __future__ import annotations

import torch
from torch import nn

from tww_ros.training.embedded import untrained
from tww_ros.training.optimizers import optimizers_of


def taken(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(weight) for group in optimizer.param_groups for weight in group['params']]


def test_every_weight_has_one_optimizer():
    hf = untrained(seed=1).hf
    adam, muon = optimizers_of(hf, muon=True, weight_decay=0.1)
    both = taken(adam) + taken(muon)
    assert len(both) == len(set(both))
    assert set(both) == {id(weight) for weight in hf.parameters()}
    matrices = {name for name, weight in hf.named_parameters() if id(weight) in taken(muon)}
    assert 'model.language_model.layers.0.self_attn.q_proj.weight' in matrices
    assert 'model.visual.blocks.0.attn.qkv.weight' in matrices
    assert not [name for name in matrices if 'embed' in name or 'norm' in name or 'bias' in name]


def test_frozen_weights_have_none():
    hf = untrained(seed=1).hf
    hf.model.visual.requires_grad_(False)
    learnt = {id(weight) for weight in hf.parameters() if weight.requires_grad}
    for muon in (False, True):
        optimizers = optimizers_of(hf, muon=muon, weight_decay=0.1)
        assert len(optimizers) == 1 + muon
        assert {weight for one in optimizers for weight in taken(one)} == learnt


def test_norms_and_biases_do_not_decay():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    adam, = optimizers_of(net, muon=False, weight_decay=0.1)
    decay = {id(weight): group['weight_decay'] for group in adam.param_groups
             for weight in group['params']}
    assert [decay[id(weight)] for weight in net.parameters()] == [0.1, 0.0, 0.0, 0.0]


def test_a_step_of_muon_is_an_orthogonal_matrix_of_adamws_size():
    torch.manual_seed(0)
    net = nn.Linear(32, 64, bias=False)
    before = net.weight.detach().clone()
    *_, muon = optimizers_of(net, muon=True, weight_decay=0.0)
    muon.param_groups[0]['lr'] = 0.01
    net.weight.grad = torch.randn(64, 32, dtype=torch.float32) * torch.logspace(0, -2, 32)
    muon.step()
    values = torch.linalg.svdvals((before - net.weight.detach()).double())
    # All directions count the same, however small their gradient (Newton-Schulz stops near 1)...
    assert float(values.max() / values.min()) < 2.5
    # ... and a number changes by some 0.2 of the rate, as in AdamW.
    change = float((before - net.weight.detach()).square().mean().sqrt()) / 0.01
    assert 0.1 < change < 0.3
