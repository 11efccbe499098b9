"""Files of a memory on disk: KV blocks as safetensors, the writer's lock, names that stay inside.

In: tensors, or the bytes of a file with its size and checksum. Out: a file that is either whole or
not there, or the tensors again. It knows nothing of the database.

    blocks/00012/12345-segment-678.safetensors      segments by the thousand; segment, name, block

A block is written beside its place, brought to the disk, then renamed; what a crash leaves behind
(`.partial`, or a file that no row knows) is removed by `sweep`. A file is never changed once it
has its name, so copies of a memory may share it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tww_ros.errors import StoreError
from tww_ros.memory.store_schema import StoredBlock

if TYPE_CHECKING:
    import torch

DATABASE = 'memory.sqlite3'
_NAME = re.compile(r'[a-z][a-z0-9_]*')
_OURS = re.compile(r'\d+-[a-z][a-z0-9_]*-\d+\.safetensors(\.partial)?')
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def inside(root: Path, name: str) -> Path:
    """The path of `name` strictly below `root`; StoreError for whatever leads elsewhere.

    For names that come over the network: '..', absolute paths and links that lead out are refused.
    """
    root = Path(root).expanduser().resolve()
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError):
        # A null character, a name that is too long, links that go round.
        path = root
    if not name.strip() or Path(name).is_absolute() or root not in path.parents:
        raise StoreError(f'expected the name of a memory inside {root}, got {name!r}; leave out '
                         '.. and the leading /')
    return path


def no_room(error: OSError) -> bool:
    """Whether the disk (or the quota, or a limit of the process) is full."""
    return error.errno in _NO_ROOM


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The safetensors file of these tensors, wherever they are and however they are laid out."""
    import torch
    from safetensors.torch import save
    # A copy each: safetensors takes neither strides nor tensors that share their storage.
    return save({name: tensor.detach().to('cpu', copy=True, memory_format=torch.contiguous_format)
                 for name, tensor in tensors.items()}, {'tww': json.dumps(dict(metadata))})


def decode(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load
    return load(data)


def checksum(data: bytes) -> str:
    """As sha256sum prints it."""
    return hashlib.sha256(data).hexdigest()


def check_name(name: str) -> str:
    """The name of a block, which becomes part of a file name."""
    if not _NAME.fullmatch(name):
        raise StoreError(f'expected a block\'s name of letters, digits and _, got {name!r}')
    return name


class BlockFiles:
    """The folder blocks/ of one memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / 'blocks'

    def path(self, block_id: int, segment_id: int, name: str) -> Path:
        """Where a block lies. Made of what its row says, so no row can point elsewhere."""
        return (self.folder / f'{segment_id // 1000:05d}'
                / f'{segment_id}-{check_name(name)}-{block_id}.safetensors')

    def write(self, path: Path, data: bytes) -> None:
        """Make the file; after a crash it is whole or not there. Raises OSError."""
        partial = self._make_folder(path)
        try:
            with open(partial, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._name(partial, path)
        except BaseException:
            remove((partial,))
            raise

    def take(self, path: Path, source: Path) -> None:
        """Share another memory's file, or copy it where files cannot be shared. Raises OSError."""
        partial = self._make_folder(path)
        remove((partial,))
        try:
            try:
                os.link(source, partial)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(source, partial)
                with open(partial, 'rb+') as file:
                    os.fsync(file.fileno())
            self._name(partial, path)
        except BaseException:
            remove((partial,))
            raise

    def read(self, path: Path, nbytes: int, sha256: str) -> bytes:
        """The file, or a ValueError that says how it differs. Raises OSError."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ValueError('it is missing') from None
        if len(data) != nbytes:
            raise ValueError(f'expected {nbytes:,} bytes, got {len(data):,}')
        if checksum(data) != sha256:
            raise ValueError('its content was altered (wrong checksum)')
        return data

    def sizes(self) -> dict[Path, int]:
        """Bytes of every file that this module made, half-written ones too."""
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as folders:
            for folder in folders:
                if folder.is_dir(follow_symlinks=False):
                    with os.scandir(folder) as files:
                        found.update({Path(file.path): file.stat(follow_symlinks=False).st_size
                                      for file in files if _OURS.fullmatch(file.name)})
        return found

    def sweep(self, blocks: Collection[StoredBlock]) -> dict[int, str]:
        """Remove files that belong to no block; returns what is wrong with blocks, by their id."""
        sizes, faults = self.sizes(), {}
        for block in blocks:
            size = sizes.pop(self.path(block.id, block.segment_id, block.name), None)
            if size is None:
                faults[block.id] = 'it is missing'
            elif size != block.nbytes:
                faults[block.id] = f'expected {block.nbytes:,} bytes, got {size:,}'
        remove(sizes)
        return faults

    def _make_folder(self, path: Path) -> Path:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
        return path.with_name(f'{path.name}.partial')

    def _name(self, partial: Path, path: Path) -> None:
        os.replace(partial, path)
        sync_folder(path.parent)


def remove(paths: Collection[Path]) -> None:
    """Remove files; those that cannot be removed now are swept up at the next start."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a file that was renamed stays so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WriterLock:
    """One writer to a folder. The system gives it back when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError when somebody else writes there, OSError when it is no good."""
        self._file = open(folder / 'lock', 'a+', encoding='ascii')
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            writer = self._file.read(20).strip() or '?'
            self._file.close()
            raise StoreError(f'{folder} is being written to by process {writer}: stop that one, '
                             'or choose another folder; reading is possible meanwhile') from None
        except OSError:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let others write."""
        self._file.close()
