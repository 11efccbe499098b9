"""Numbers arrive as they were sent; work on a side stream is done when its context ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tww_ros.model.device import SideStream, send

DEVICES = [torch.device('cpu'), pytest.param(torch.device('cuda'), marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='no CUDA device'))]


@pytest.mark.parametrize('device', DEVICES, ids=str)
@pytest.mark.parametrize('dtype', [np.int64, np.float32, np.uint8, bool])
def test_numbers_arrive_as_they_were_sent(device: torch.device, dtype: type) -> None:
    numbers = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(dtype)
    sent = send(numbers, device)
    assert sent.device.type == device.type
    assert np.array_equal(sent.cpu().numpy(), numbers) and sent.cpu().numpy().dtype == dtype
    assert send(np.array([], dtype), device).shape == (0,)


@pytest.mark.parametrize('device', DEVICES, ids=str)
def test_work_beside_is_done_when_its_context_ends(device: torch.device) -> None:
    beside = SideStream(device)
    left = np.random.default_rng(1).standard_normal((200, 200))
    for _ in range(10):
        with beside():
            made = send(left, device) @ send(left, device)
            beside.lend(made)
        assert np.allclose(made.cpu().numpy(), left @ left)


def test_an_error_beside_is_told() -> None:
    beside = SideStream(torch.device('cpu'))
    with pytest.raises(ZeroDivisionError), beside():
        _ = 1 // 0
