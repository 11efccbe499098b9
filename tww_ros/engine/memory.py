"""Memory: what an engine remembers, as its users see it.

In: nothing but calls, from any thread. Out: segments, notes, bytes by tier; notes found by words;
a copy on disk; what was before some moment forgotten.

    engine.memory.segments()      engine.memory.search('red ball')      engine.memory.save(folder)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tww_ros.config import MemoryConfig
from tww_ros.engine.keeper import Keeper
from tww_ros.engine.recall import note_ids
from tww_ros.errors import StoreError
from tww_ros.memory.archive import Archive
from tww_ros.memory.bank import MemoryBank
from tww_ros.memory.quantization import QuantScheme
from tww_ros.memory.store import Store
from tww_ros.memory.store_schema import Identity
from tww_ros.model.protocol import StepModel
from tww_ros.types import Note, SegmentInfo

FLUSH_S = 60.0


def identity_of(model: StepModel) -> Identity:
    """What KV blocks depend on."""
    shape = model.block_shape
    # Not its name: the same weights may lie elsewhere tomorrow.
    return Identity(f'Qwen3-VL ({model.quantization})', model.fingerprint, model.scheme,
                    shape.layers, shape.kv_heads, shape.head_dim, str(shape.dtype))


def quant_scheme(model: StepModel, config: MemoryConfig) -> QuantScheme | None:
    """How blocks are quantized; None = not, by the settings or because this model's cannot be."""
    if config.kv_bits == 16 or model.block_shape.head_dim % 8:
        return None
    return QuantScheme(config.kv_bits)


def open_archive(model: StepModel, config: MemoryConfig, identity: Identity,
                 on_cap: Callable[[int, str], None]) -> Archive:
    """The folder's archive, or one in memory; StoreError when the folder is of another model."""
    on_disk = bool(config.folder)
    store = (Store.open(Path(config.folder), identity, config.disk_bytes, on_cap) if on_disk
             else Store.in_memory())

    def measure(note: Note) -> int:
        return 0 if model.style.says_nothing(note.text) else len(note_ids(model, note))
    return Archive(store, model.block_shape, quant_scheme(model, config), on_disk=on_disk,
                   measure=measure)


class Memory:
    """The bank and the archive of one engine."""

    def __init__(self, bank: MemoryBank, archive: Archive, identity: Identity,
                 keeper: Keeper) -> None:
        self._bank = bank
        self._archive = archive
        self._identity = identity
        self._keeper = keeper
        self._flush = keeper.flush

    def __len__(self) -> int:
        return len(self._bank)

    def segments(self) -> list[SegmentInfo]:
        """Every segment remembered, oldest first."""
        return self._bank.segments()

    def notes(self) -> list[Note]:
        """Every note remembered, oldest segment first."""
        return self._bank.notes()

    def episodes(self) -> list[Note]:
        """What sums up the oldest notes; segment_id: of the first segment of each."""
        return [episode for episode, _ in self._bank.episodes()]

    def search(self, words: str, limit: int = 10) -> list[Note]:
        """Notes with any of these words, best first."""
        self._flush(FLUSH_S)
        found = self._archive.store.search(words, limit=limit, kind='note')
        records = (self._bank.get(hit.last_id) for hit in found)
        return [record.note for record in records if record is not None and record.note]

    @property
    def nbytes(self) -> int:
        """Bytes of KV in this machine's memory, all tiers but disk."""
        return self._bank.nbytes

    @property
    def tokens(self) -> int:
        """Tokens of these."""
        return self._bank.tokens

    @property
    def tier_bytes(self) -> dict[str, int]:
        """Bytes of KV by tier; `disk`: all of the folder."""
        told = self._bank.tier_bytes
        if self._archive.on_disk:
            told['disk'] = self._archive.store.nbytes
        return told

    def save(self, folder: str | Path) -> None:
        """Write all of it to a new folder, as it is now; StoreError when that fails."""
        folder = Path(folder).expanduser()
        if not self._flush(FLUSH_S):
            raise StoreError(f'memory could not be written to {folder}: what has to be written '
                             f'first did not come to an end in {FLUSH_S:g} s; try again')
        if self._archive.on_disk:
            self._archive.store.copy_to(folder)
            return
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f'{folder} is not empty; expected a new folder')
        partial = folder.with_name(f'{folder.name}.partial')
        shutil.rmtree(partial, ignore_errors=True)
        with Store.open(partial, self._identity) as store:
            copy = self._archive.into(store)
            for record in self._bank.records():
                copy.add_segment(record, record.block or record.away)
                if record.note is not None:
                    copy.add_note(record, record.note, record.note_block)
            for episode, last_id in self._bank.episodes():
                copy.add_episode(episode, last_id)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)

    def clear(self, before_ns: int) -> int:
        """Forget what ended before a stamp, here and in the folder; the number of segments."""
        count = self._bank.clear(before_ns)
        self._keeper.clear(before_ns)
        self._flush(FLUSH_S)
        return count
