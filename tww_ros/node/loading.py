"""Loading a model, and how far it is.

In: NodeConfig. Out: the model, and meanwhile a number from 0 to 1 that any thread may read. The
weights are most of it; transformers tells how many of them it has, through its progress bar.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from tww_ros.config import NodeConfig
from tww_ros.errors import ModelError

# Share of loading that is behind when the libraries are imported, and when the weights are there.
IMPORTED, LOADED = 0.2, 0.9


class Progress:
    """How much of configuring is done: `value` grows from 0 to 1."""

    def __init__(self) -> None:
        self.value = 0.0

    def weights(self, share: float) -> None:
        """So much of the weights is there."""
        self.value = IMPORTED + (LOADED - IMPORTED) * min(1.0, share)


def load_checkpoint(node: NodeConfig, progress: Progress | None = None) -> Any:
    """The model of the parameters; ModelError when it cannot be loaded."""
    # Imported here: torch and transformers take seconds, and the node answers meanwhile.
    try:
        from tww_ros import load_model
    except ImportError as error:
        raise ModelError(f'{error}; expected torch, transformers and bitsandbytes in the Python '
                         f'that runs the node ({sys.executable}); install them there') from error
    with _told_by_transformers(progress or Progress()):
        return load_model(node.model, quantization=node.quantization, device=node.device,
                          dtype=node.dtype, positions=node.positions, prompts=node.prompts)


@contextlib.contextmanager
def _told_by_transformers(progress: Progress) -> Iterator[None]:
    """Take its progress bars meanwhile, which a log cannot show anyway."""
    from transformers.utils import logging

    class Bar(logging.EmptyTqdm):
        def __iter__(self) -> Iterator[Any]:
            total = len(self._iterator) if hasattr(self._iterator, '__len__') else 0
            for count, item in enumerate(self._iterator, start=1):
                yield item
                if total:
                    progress.weights(count / total)

    progress.weights(0.0)
    # Earlier versions have no such hook, and show their bar.
    set_hook = getattr(logging, 'set_tqdm_hook', lambda hook: None)
    before = set_hook(lambda factory, args, options: Bar(*args, **options))
    try:
        yield
    finally:
        set_hook(before)
    progress.weights(1.0)
