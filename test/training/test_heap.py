"""Freed memory stays with the process from step to step, and goes when it is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc only')


def printed(program: str) -> list[int]:
    told = subprocess.run([sys.executable, '-c', program], check=True, capture_output=True,
                          text=True, timeout=60)
    return [int(word) for word in told.stdout.split()]


def test_freed_memory_is_kept_for_the_next_step() -> None:
    program = """if True:
        import resource, torch
        from tww_ros.training.heap import keep_freed_memory
        {}
        # Above what glibc takes from its heap by itself, 32 MiB; each a little smaller, because
        # what is small takes pieces of what was freed.
        for size_mib in (64, 58, 52):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(size_mib << 20, dtype=torch.uint8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """
    kept, = printed(program.format('keep_freed_memory()'))
    plain, = printed(program.format('pass'))
    assert kept < plain / 10


def test_free_pages_between_others_are_given_back() -> None:
    kept, given = printed("""if True:
        import os, torch
        from tww_ros.training.heap import give_back, keep_freed_memory
        def resident():
            return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        keep_freed_memory()
        blocks = [torch.ones(1 << 20, dtype=torch.uint8) for _ in range(256)]
        # Every second one, so that no free piece is at the heap's end.
        del blocks[::2]
        print(resident())
        give_back()
        print(resident())
        """)
    assert kept - given > 100 << 20
