"""Numbers on their way to a device, and work that runs beside other work there.

In: numpy arrays, a device. Out: tensors on it; a context whose kernels have a CUDA stream of their
own. On the CPU both do nothing. It knows nothing of models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


def send(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """The same numbers on a device. From pinned memory, so that nobody waits for the copy: what
    reads it on the same stream comes behind it."""
    host = torch.from_numpy(numbers)
    if device.type != 'cuda':
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class SideStream:
    """Lets one thread compute beside another one's kernels instead of behind them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = None
        if device.type == 'cuda':
            # What was put on the device until now can be read from any stream.
            torch.cuda.synchronize(device)
            self._stream = torch.cuda.Stream(device)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Work inside is done when the context ends; only the calling thread waits for it."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def lend(self, *tensors: torch.Tensor) -> None:
        """Tensors made inside that the default stream will read: their memory is not given away
        before it has."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.default_stream(self._device))
