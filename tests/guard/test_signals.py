import torch

from lightning_gradguard.guard.signals import Signals


def test_signals_that_are_there_come_to_the_host_in_their_places():
    signals = Signals(torch.tensor(3.0), torch.tensor(0.5), loss=torch.tensor(2.0))
    found = signals.on_host(signals.together())
    assert (found.total, found.coefficient, found.buffers, found.loss) == (3.0, 0.5, None, 2.0)
