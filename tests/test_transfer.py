from __future__ import annotations

import numpy as np
import torch

from idefics_cli.engine.native.transfer import HostCopy, to_device
from tests.small_checkpoints import CPU


def test_a_copy_holds_what_was_there_when_it_was_made() -> None:
    tokens, logprobs = torch.arange(5), torch.linspace(-1.0, 0.0, 5)
    copy = HostCopy(tokens, logprobs)
    tokens.fill_(7)
    logprobs.zero_()
    first, second = copy.wait()
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert (first.dtype.name, second.dtype.name) == ("int64", "float32")
    assert second.tolist() == np.linspace(-1.0, 0.0, 5, dtype=np.float32).tolist()


def test_a_tensor_comes_to_the_device_as_it_is() -> None:
    host = torch.tensor([[3, 1], [2, 0]], dtype=torch.int32)
    there = to_device(host, CPU)
    assert there.device == CPU
    assert torch.equal(there, host)
