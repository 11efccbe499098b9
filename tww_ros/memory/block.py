"""KV block: keys and values of one segment, note, question or answer, for all layers.

    keys, values   [L, H, capacity, D]      L layers, H key-value heads, D head size

In: rotated keys and values, appended token by token or chunk by chunk. Out: slices of the same
storage, never a copy. A block only grows at its end and is written by one thread, the reasoner.
Who attends reads it with `layer_keys` and `layer_values`, as it reads a `QuantizedBlock`.

Positions: token i was rotated at its stored position when it was written. The block occupies
stored positions `start` to `end` (exclusive) on every axis; whoever attends to it elsewhere shifts
the query (see `memory.view`), so stored keys are never touched again. `end - start` is the block's
extent; because a temporal patch of h × w tokens advances positions by max(h, w) only, the extent
is smaller than the length, and dropping tokens makes the length smaller and leaves the extent.

Why not one growing cache for everything: dropping, moving or quantizing a segment must not move
another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class BlockShape:
    """What one token costs: layers × key-value heads × head size, in a dtype, on a device."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class KVBlock:
    """Keys and values of one run of tokens; grows at the end, never moves."""

    def __init__(self, shape: BlockShape, *, start: int = 0, capacity: int = 0) -> None:
        self.shape = shape
        self.start = start
        self.end = start
        self.length = 0
        # Complete: as long as nothing is added, who keeps copies of it may go on using them.
        self.sealed = False
        self.keys, self.values = self._allocate(capacity)

    @property
    def extent(self) -> int:
        """Positions that the block occupies on the position axis."""
        return self.end - self.start

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes that the block holds, spare capacity included."""
        return self.capacity * self.shape.token_bytes

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more; doubling, so a block of n tokens copies O(n) in all."""
        needed = self.length + tokens
        if needed <= self.capacity:
            return
        keys, values = self._allocate(max(needed, 2 * self.capacity))
        keys[:, :, :self.length] = self.keys[:, :, :self.length]
        values[:, :, :self.length] = self.values[:, :, :self.length]
        self.keys, self.values = keys, values

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put [H, T, D] behind the committed tokens of one layer; `commit` makes them count."""
        tokens = keys.shape[1]
        self.keys[layer, :, self.length:self.length + tokens] = keys
        self.values[layer, :, self.length:self.length + tokens] = values

    def commit(self, tokens: int, end: int) -> None:
        """Count `tokens` written in every layer; `end` = the first free stored position."""
        self.length += tokens
        self.end = end
        self.sealed = False

    def layer_keys(self, layer: int, length: int) -> torch.Tensor:
        """Keys of the first `length` tokens of one layer, [H, length, D]: a slice, no copy."""
        return self.keys[layer, :, :length]

    def layer_values(self, layer: int, length: int) -> torch.Tensor:
        """Values of the first `length` tokens of one layer, [H, length, D]: a slice, no copy."""
        return self.values[layer, :, :length]

    def seal(self) -> None:
        """Give back spare capacity; the block will not grow soon."""
        if self.capacity > self.length:
            keys, values = self._allocate(self.length)
            keys[:] = self.keys[:, :, :self.length]
            values[:] = self.values[:, :, :self.length]
            self.keys, self.values = keys, values
        self.sealed = True

    def keep(self, mask: torch.Tensor) -> KVBlock:
        """A sealed copy with only the tokens where `mask` (bool [length]) is true.

        It occupies the same positions, so nothing else in a view moves.
        """
        mask = mask.to(self.shape.device)
        return self._copy(self.shape, self.keys[:, :, :self.length][:, :, mask],
                          self.values[:, :, :self.length][:, :, mask])

    def to(self, device: torch.device | str) -> KVBlock:
        """The block on `device`: itself when it is there already, else a sealed copy."""
        device = torch.device(device)
        if self.keys.device == device:
            return self
        return self._copy(replace(self.shape, device=device), self.keys[:, :, :self.length],
                          self.values[:, :, :self.length])

    def state(self) -> dict[str, torch.Tensor]:
        """Contiguous tensors for safetensors: keys and values [L, H, length, D]."""
        return {'keys': self.keys[:, :, :self.length].contiguous(),
                'values': self.values[:, :, :self.length].contiguous()}

    @classmethod
    def from_state(cls, shape: BlockShape, start: int, end: int,
                   state: Mapping[str, torch.Tensor]) -> KVBlock:
        """The block that `state()` came from, sealed; dtype and device as `shape` says."""
        block = cls(shape, start=start)
        block.keys, block.values = (state[name].to(shape.device, shape.dtype)
                                    for name in ('keys', 'values'))
        block.commit(block.capacity, end)
        block.sealed = True
        return block

    def _copy(self, shape: BlockShape, keys: torch.Tensor, values: torch.Tensor) -> KVBlock:
        block = KVBlock(shape, start=self.start, capacity=keys.shape[2])
        block.keys.copy_(keys)
        block.values.copy_(values)
        block.commit(keys.shape[2], self.end)
        block.sealed = True
        return block

    def _allocate(self, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = (self.shape.layers, self.shape.kv_heads, capacity, self.shape.head_dim)
        options = {'dtype': self.shape.dtype, 'device': self.shape.device}
        return torch.empty(size, **options), torch.empty(size, **options)
