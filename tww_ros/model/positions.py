"""M-RoPE positions and rotations, exact at any hour of the stream.

In: token runs and integer positions [3, T] (time, height, width). Out: cos and sin [T, D] for
queries and keys. Source rules are Qwen3-VL's (`get_rope_index` in transformers): text advances all
three axes by one; a temporal patch of h × w tokens takes (0, row, column) + offset, and the next
token stands at offset + max(h, w).

Why our own rotation: the model is called with all-zero position ids, which makes its built-in
rotation the identity, and the attention function applies M-RoPE from positions that we own. Angles
are computed in float64, because a float32 product of position and frequency is off by 0.03 rad
after some 500,000 positions (a working day at a few patches a second), while float64 keeps 1e-10.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen3VLTextConfig

from tww_ros.errors import ModelError


def text_positions(count: int, start: int) -> np.ndarray:
    """int64 [3, count]: start, start + 1, … on every axis."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count))


def patch_positions(rows: int, columns: int, start: int) -> tuple[np.ndarray, int]:
    """int64 [3, rows × columns] of one temporal patch's tokens, and the next free position."""
    grid = np.zeros((3, rows, columns), dtype=np.int64)
    grid[1] = np.arange(rows)[:, None]
    grid[2] = np.arange(columns)[None, :]
    return grid.reshape(3, -1) + start, start + max(rows, columns)


class MRope:
    """Rotation tables for one text configuration (interleaved M-RoPE, Qwen3-VL report, 2)."""

    def __init__(self, config: Qwen3VLTextConfig, device: torch.device) -> None:
        rope = config.rope_parameters
        if rope.get('rope_type', 'default') != 'default':
            raise ModelError(f'expected rope_type "default", got {rope["rope_type"]!r}; scaled '
                             'RoPE is not supported, remove it from config.json')
        self.head_dim = config.head_dim
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        # The model's own frequencies are float32; their values, not their formula, are the
        # reference.
        inv_freq = 1.0 / (rope['rope_theta'] ** half)                          # [D/2]
        self.inv_freq = inv_freq.to(torch.float64).numpy()                     # [D/2]
        section = rope.get('mrope_section', [24, 20, 20])
        axis = np.zeros(self.head_dim // 2, dtype=np.int64)                     # 0 t, 1 h, 2 w
        axis[1:section[1] * 3:3] = 1
        axis[2:section[2] * 3:3] = 2
        self.axis = axis
        self._device = device

    def table(self, positions: np.ndarray, dtype: torch.dtype
              ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, D] at integer positions [3, T]."""
        angles = positions[self.axis].T * self.inv_freq                       # [T, D/2] float64
        angles = np.concatenate((angles, angles), axis=-1)                      # [T, D]
        cos, sin = torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))
        return cos.to(self._device, dtype), sin.to(self._device, dtype)

    def turns(self, positions: np.ndarray, tokens: np.ndarray, shifts: np.ndarray,
              counts: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables for `rotate_signed` [R + N, D]: R rows, then the N tokens where they stand.

        positions: [3, N]; row r is token `tokens[r]`, moved back on every axis by the first of
        `shifts` for so many rows as the first of `counts` says, and so on. A shift is one more
        turn, so sines are taken of tokens and of shifts only, not of all rows.
        """
        own = np.exp(1j * (positions[self.axis].T * self.inv_freq))             # [N, D/2]
        back = np.exp(-1j * (shifts[:, None] * self.inv_freq)).repeat(counts, 0)  # [R, D/2]
        return self._signed(np.concatenate((own[tokens] * back, own)), dtype)

    def moves(self, shifts: np.ndarray, counts: np.ndarray, dtype: torch.dtype
              ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables for `rotate_signed` [T, D] that move tokens on by the first of `shifts`, on every
        axis, for so many of them as the first of `counts` says, and so on."""
        tables = self._signed(np.exp(1j * (shifts[:, None] * self.inv_freq)), dtype)
        repeats = torch.from_numpy(counts).to(self._device)
        cos, sin = (table.repeat_interleave(repeats, 0) for table in tables)
        return cos, sin

    def _signed(self, turns: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines [T, D] of turns of the complex plane [T, D/2]."""
        half = self.head_dim // 2
        table = np.empty((2, len(turns), self.head_dim),
                         np.float64 if dtype == torch.float64 else np.float32)
        table[0, :, :half] = table[0, :, half:] = turns.real
        table[1, :, half:] = turns.imag
        np.negative(table[1, :, half:], out=table[1, :, :half])
        cos, sin = torch.from_numpy(table).to(self._device, dtype)
        return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[..., T, D] rotated by tables [T, D], halves paired as in Llama and Qwen."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate_signed(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same with the sines of `MRope.turns`, in half as many operations."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
