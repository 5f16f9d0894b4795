from __future__ import annotations

import time

import torch

from idefics_cli.engine.families.base import Prompt
from idefics_cli.engine.native.sequence import Sequence
from idefics_cli.engine.native.timer import Timer


def test_a_timer_takes_what_its_work_takes_and_is_shared_out() -> None:
    timer = Timer(torch.device("cpu"))
    time.sleep(0.02)
    timer.stop().wait()
    time.sleep(0.05)
    assert 20 <= timer.ms < 60
    sequence = Sequence(Prompt((1,), 0), {}, (), vision=[(timer, 0.25), (timer, 0.75)], decode=[(timer, 0.5)])
    assert sequence.costs_ms() == (timer.ms, 0.0, timer.ms / 2)
