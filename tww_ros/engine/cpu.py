"""CPU threads of the two engine threads.

torch gives every Python thread that calls it as many OpenMP threads as there are cores. With the
watcher and the reasoner computing at once these wait for each other: on two cores a decode step of
the tiny model took 32 ms with two threads each and 3 ms with one, while other work was going on.
"""

from __future__ import annotations

import os

import torch


def limit_threads(device: torch.device, threads: int) -> None:
    """Set the calling thread's share on the CPU; 0 = half of the cores that we may use."""
    if device.type == 'cpu':
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // 2))
