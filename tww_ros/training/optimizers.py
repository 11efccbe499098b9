"""Which optimizer takes which weights.

In: a model. Out: torch optimizers that are stepped together. Muon (Jordan et al. 2024, in torch)
takes the matrices of the layers, at the rate that AdamW would have (`match_rms_adamw`, Moonlight,
arXiv 2502.16982); embeddings, norms, biases and convolutions stay with AdamW. What it brings from
random weights is in docs/training.md; on checkpoints that AdamW trained it has not been tried.
"""

from __future__ import annotations

import torch
from torch import nn

BETAS = (0.9, 0.98)


def optimizers_of(model: nn.Module, *, muon: bool, weight_decay: float
                  ) -> list[torch.optim.Optimizer]:
    """For the weights that want a gradient; rates are set step by step."""
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = _layers(model) if muon else []
    taken = {id(weight) for weight in matrices}
    others = [weight for weight in learnt if id(weight) not in taken]
    adam = torch.optim.AdamW(
        [{'params': [weight for weight in others if weight.ndim > 1],
          'weight_decay': weight_decay},
         {'params': [weight for weight in others if weight.ndim <= 1], 'weight_decay': 0.0}],
        betas=BETAS)
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, weight_decay=weight_decay,
                                   adjust_lr_fn='match_rms_adamw')]


def _layers(model: nn.Module) -> list[nn.Parameter]:
    """Matrices of linear layers, but for those that are embeddings too."""
    embeddings = {id(module.weight) for module in model.modules()
                  if isinstance(module, nn.Embedding)}
    return [module.weight for module in model.modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
            and id(module.weight) not in embeddings]
