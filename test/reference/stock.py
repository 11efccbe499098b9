"""What the stock Qwen3-VL processor makes of a clip, written from its description.

In: uint8 frames, their stamps in seconds, a tokenizer. Out: the inputs of
`Qwen3VLForConditionalGeneration`. Nothing of tww_ros is used, so a test may compare against it;
`Qwen3VLProcessor` itself cannot be made here, because its video half needs torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

PATCH, MERGE, PAIR = 16, 2, 2
VIDEO = 2                                                     # its number in mm_token_type_ids


def noise(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of random pixels: no two tokens are alike, so a wrong mask cannot hide."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def pairs(items: Sequence) -> list[tuple]:
    """Two by two; an odd last one stands beside itself."""
    return [(items[i], items[min(i + 1, len(items) - 1)]) for i in range(0, len(items), PAIR)]


def pixel_rows(frames: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [patches, 3 · 2 · 16 · 16] of frames whose sides are multiples of 32."""
    height, width, _ = frames[0].shape
    cell = PATCH * MERGE
    rows = []
    for pair in pairs(frames):
        images = [(frame.astype(np.float64) / 255 - 0.5) / 0.5 for frame in pair]
        for top in range(0, height, cell):
            for left in range(0, width, cell):
                for y in range(top, top + cell, PATCH):
                    for x in range(left, left + cell, PATCH):
                        cut = [image[y:y + PATCH, x:x + PATCH] for image in images]
                        rows.append(np.stack(cut).transpose(3, 0, 1, 2).ravel())
    return np.stack(rows)


def video_text(stamps_s: Sequence[float], rows: int, columns: int) -> str:
    """Time stamp and placeholders of every temporal patch of rows × columns tokens."""
    return ''.join(
        f'<{(first + last) / 2:.1f} seconds><|vision_start|>'
        + '<|video_pad|>' * (rows * columns) + '<|vision_end|>'
        for first, last in pairs(stamps_s))


def inputs(tokenizer, clips: Sequence[tuple[Sequence[np.ndarray], Sequence[float]]],
           question: str = '') -> dict[str, torch.Tensor]:
    """Keyword arguments for the stock model: clips of (frames, stamps in s), one user turn.

    Several clips stand one behind the other as one video each. With a question the assistant's
    turn is opened behind it; without one the text ends behind the last vision token.
    """
    text, pixels, grids = '<|im_start|>user\n', [], []
    for frames, stamps_s in clips:
        height, width, _ = frames[0].shape
        rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
        text += video_text(stamps_s, rows, columns)
        pixels.append(pixel_rows(frames))
        grids.append([len(pairs(frames)), height // PATCH, width // PATCH])
    if question:
        text += f'{question}<|im_end|>\n<|im_start|>assistant\n'
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    pad = tokenizer.convert_tokens_to_ids('<|video_pad|>')
    return {
        'input_ids': ids, 'attention_mask': torch.ones_like(ids),
        'mm_token_type_ids': (ids == pad).int() * VIDEO, 'video_grid_thw': torch.tensor(grids),
        'pixel_values_videos': torch.from_numpy(np.concatenate(pixels)).float(),
    }
