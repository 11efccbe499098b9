"""The whole layout at once, in float64, written from scratch: what the packed steps must equal.

In: units (header, segments, notes, questions, answers) with their tokens and the names of what
each one sees, in order. Out: per unit its logits and, for every layer, its keys before rotation
and its values. One boolean mask over all tokens of all units, no cache, no chunks, no shifts:
every unit places the units that it sees one behind the other, from 0, and both queries and keys
are rotated there. Only the weights come from the model under test.

    letters   N tokens of all units   T tokens of one unit   L layers   D head size   V vocabulary
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from reference import stock


@dataclass
class Unit:
    """One block's worth of tokens. images: the frames of each temporal patch, in order."""

    name: str
    side: str
    ids: list[int]
    sees: list[str]
    images: list[tuple[np.ndarray, ...]] = field(default_factory=list)


@dataclass
class Result:
    """logits [T, V]; keys (not rotated) and values [L, H, T, D]; local int64 [3, T]; extent."""

    logits: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    local: np.ndarray
    extent: int


# Changes the mask [N, N] or a unit's positions {name: [3, T]}: to show what a fault would cost.
MaskFault = Callable[[torch.Tensor, dict[str, slice]], None]
PlaceFault = Callable[[Unit, dict[str, np.ndarray]], None]


def local_positions(ids: Sequence[int], grids: Sequence[tuple[int, int]], pad: int
                    ) -> tuple[np.ndarray, int]:
    """[3, T] and the next free position, token by token: text steps, a patch spreads out."""
    positions, place, grids, i = [], 0, list(grids), 0
    while i < len(ids):
        if ids[i] != pad:
            positions.append((place, place, place))
            place, i = place + 1, i + 1
            continue
        rows, columns = grids.pop(0)
        positions += [(place, place + y, place + x) for y in range(rows) for x in range(columns)]
        place, i = place + max(rows, columns), i + rows * columns
    assert not grids
    return np.array(positions, np.int64).T, place


class Naive:
    """A Qwen3-VL text model in float64; the vision tower is the stock one, in float64 too."""

    def __init__(self, hf: torch.nn.Module) -> None:
        hf = copy.deepcopy(hf).double()
        self.hf = hf
        self.config = hf.config.text_config
        self.pad = hf.config.video_token_id
        self.embedding = hf.model.language_model.embed_tokens.weight
        self.layers = [dict(layer.named_parameters()) for layer in hf.model.language_model.layers]
        self.norm = hf.model.language_model.norm.weight
        self.head = hf.lm_head.weight
        rope = self.config.rope_parameters
        # The checkpoint's frequencies are float32 numbers, and count as weights.
        self.frequencies = hf.model.language_model.rotary_emb.inv_freq.tolist()
        _, height, width = rope['mrope_section']
        # t h w t h w … for as long as the sections of h and w last, then t.
        self.axes = [1 if i % 3 == 1 and i < 3 * height else 2 if i % 3 == 2 and i < 3 * width
                     else 0 for i in range(len(self.frequencies))]

    @torch.inference_mode()
    def forward(self, units: Sequence[Unit], scheme: str, *, mask_fault: MaskFault | None = None,
                place_fault: PlaceFault | None = None) -> dict[str, Result]:
        """Every unit's result by its name."""
        merged = [[(image[0].shape[0] // 32, image[0].shape[1] // 32) for image in unit.images]
                  for unit in units]
        local = {unit.name: local_positions(unit.ids, grids, self.pad)
                 for unit, grids in zip(units, merged, strict=True)}
        rows, first = {}, 0
        for unit in units:
            rows[unit.name] = slice(first, first + len(unit.ids))
            first += len(unit.ids)
        visible = torch.zeros(first, first, dtype=torch.bool)                       # [N, N]
        for unit in units:
            own = rows[unit.name]
            for name in unit.sees:
                visible[own, rows[name]] = True
            visible[own, own] = torch.ones(len(unit.ids), len(unit.ids), dtype=torch.bool).tril()
        if mask_fault:
            mask_fault(visible, rows)
        places = {}
        for unit in units:
            seen = self._places(unit, {u.name: u for u in units}, local, scheme)
            if place_fault:
                place_fault(unit, seen)
            places[unit.name] = np.zeros((3, first), np.int64)
            for name, positions in seen.items():
                places[unit.name][:, rows[name]] = positions

        hidden = self.embedding[[i for unit in units for i in unit.ids]].clone()    # [N, E]
        is_pad = torch.tensor([i == self.pad for unit in units for i in unit.ids])  # [N]
        tokens, deep = self._vision(units)
        hidden[is_pad] = tokens
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            hidden, k, v = self._layer(layer, hidden, visible, rows, places)
            keys.append(k)
            values.append(v)
            if index < len(deep):
                hidden[is_pad] += deep[index]
        logits = self._rms(hidden, self.norm) @ self.head.T                         # [N, V]
        return {unit.name: Result(
            logits[rows[unit.name]], torch.stack([k[:, rows[unit.name]] for k in keys]),
            torch.stack([v[:, rows[unit.name]] for v in values]), *local[unit.name])
            for unit in units}

    def rotate(self, x: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        """[H, T, D] rotated as complex numbers, pair i with pair i + D/2, at [3, T]."""
        angle = np.stack([positions[axis] * frequency for axis, frequency
                          in zip(self.axes, self.frequencies, strict=True)], axis=-1)
        half = x.shape[-1] // 2
        turned = (torch.complex(x[..., :half], x[..., half:])
                  * torch.from_numpy(np.exp(1j * angle)))                           # [H, T, D/2]
        return torch.cat((turned.real, turned.imag), dim=-1)

    @staticmethod
    def _places(unit: Unit, units: Mapping[str, Unit], local: dict[str, tuple[np.ndarray, int]],
                scheme: str) -> dict[str, np.ndarray]:
        """Where `unit` sees everything: one behind the other, on one count or one per side."""
        count, places = {'source': 0, 'target': 0}, {}
        for name in [*unit.sees, unit.name]:
            counter = 'source' if scheme == 'continuous' else units[name].side
            positions, extent = local[name]
            places[name] = positions + count[counter]
            count[counter] += extent
        return places

    def _vision(self, units: Sequence[Unit]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens, deep = [], []
        for image in (image for unit in units for image in unit.images):
            height, width, _ = image[0].shape
            grid = torch.tensor([[1, height // 16, width // 16]])
            output = self.hf.model.get_image_features(
                torch.from_numpy(stock.pixel_rows(image)), grid, return_dict=True)
            tokens.append(output.pooler_output[0])
            deep.append([level[0] for level in output.deepstack_features])
        return torch.cat(tokens), [torch.cat(level) for level in zip(*deep, strict=True)]

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.config.rms_norm_eps) * weight

    def _layer(self, w: dict[str, torch.Tensor], hidden: torch.Tensor, visible: torch.Tensor,
               rows: dict[str, slice], places: dict[str, np.ndarray]
               ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size = self.config.head_dim

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(len(x), -1, size).transpose(0, 1)                         # [H, N, D]

        x = self._rms(hidden, w['input_layernorm.weight'])
        q = self._rms(heads(x @ w['self_attn.q_proj.weight'].T), w['self_attn.q_norm.weight'])
        k = self._rms(heads(x @ w['self_attn.k_proj.weight'].T), w['self_attn.k_norm.weight'])
        v = heads(x @ w['self_attn.v_proj.weight'].T)
        group = len(q) // len(k)
        attended = torch.empty_like(q)
        for name, own in rows.items():
            query = self.rotate(q[:, own], places[name][:, own])                    # [H, T, D]
            key = self.rotate(k, places[name]).repeat_interleave(group, 0)          # [H, N, D]
            scores = query @ key.transpose(1, 2) / size ** 0.5                      # [H, T, N]
            weights = scores.masked_fill(~visible[own], -torch.inf).softmax(-1)
            attended[:, own] = weights @ v.repeat_interleave(group, 0)
        hidden = hidden + attended.transpose(0, 1).flatten(1) @ w['self_attn.o_proj.weight'].T
        x = self._rms(hidden, w['post_attention_layernorm.weight'])
        gate = x @ w['mlp.gate_proj.weight'].T
        up = x @ w['mlp.up_proj.weight'].T
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ w['mlp.down_proj.weight'].T
        return hidden, k, v
