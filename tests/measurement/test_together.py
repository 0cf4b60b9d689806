import torch
from torch import nn

from lightning_gradguard.measurement.together import Together


def test_one_process_has_nobody_to_ask():
    alone = Together(nn.Linear(2, 1))
    assert (alone.several, alone.certain) == (False, True)
    assert alone.any(True, []) is True and alone.any(False, [torch.ones(1)]) is False
    loss = torch.tensor(2.0)
    assert alone.mean({"loss": loss}) == {"loss": loss}


def test_who_left_asks_nobody():
    some = Together(nn.Linear(2, 1))
    some.several = True
    some.leave()
    assert some.any(True, []) is True
