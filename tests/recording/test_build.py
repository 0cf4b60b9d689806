import pytest
import torch
from torch import nn

from lightning_gradguard import GradientPipeline
from lightning_gradguard.recording.build import weights_are_due


@pytest.mark.parametrize(
    ("every", "measured"), [(1, [1, 50, 100, 150]), (7, [7, 56, 105, 154]), (50, [50, 100, 150]), (80, [80, 160])]
)
def test_weights_are_measured_by_the_first_record_and_the_first_in_each_fifty_steps(every, measured):
    assert [step for step in range(every, 170, every) if weights_are_due(step, every)] == measured


def test_records_between_two_measurements_have_no_weight_norms():
    net = nn.Sequential(nn.Linear(3, 1))
    pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), log_every_n_steps=1)
    net(torch.ones(2, 3)).sum().backward()
    records = [pipeline.before_step() for _ in range(60)]
    assert [record.step for record in records if record.weight_norms is not None] == [0, 49]
    norm = torch.linalg.vector_norm(nn.utils.parameters_to_vector(net.parameters()).detach())
    assert records[0].weight_norms == (pytest.approx(float(norm)),)
