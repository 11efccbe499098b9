"""A ROS domain of one's own on this machine: for the demo, the benchmarks and the tests.

In: nothing. Out: environment variables that keep DDS on this machine and in a domain that no other
run of ours is in; two nodes named /tww in one domain would answer each other's questions. A lock
file per domain says which are taken, and is freed by the kernel however the run ends. Does not
import rclpy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tww_ros.errors import ConfigError

# Higher domains use UDP ports from which Linux also gives ports to other programs.
MAX_DOMAIN_ID = 101


@contextlib.contextmanager
def own_domain() -> Iterator[dict[str, str]]:
    """Variables for a run and its children; to be set before any ROS context is made."""
    for domain_id in random.sample(range(1, MAX_DOMAIN_ID + 1), MAX_DOMAIN_ID):
        lock = _lock(domain_id)
        if lock is not None:
            break
    else:
        raise ConfigError(f'all {MAX_DOMAIN_ID} ROS domains are in use by other runs; end some')
    variables = {'ROS_DOMAIN_ID': str(domain_id), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    if os.environ.get('ROS_DISTRO') == 'humble':
        # Humble knows only this older setting; newer distributions warn about it.
        variables['ROS_LOCALHOST_ONLY'] = '1'
    with lock:
        yield variables


def _lock(domain_id: int) -> IO | None:
    """The locked file of a domain, or None when it is taken, or belongs to another user."""
    try:
        lock = open(Path(tempfile.gettempdir(), f'tww_ros_domain_{domain_id}.lock'), 'a')
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
