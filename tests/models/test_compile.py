"""``--compile``: every network is traced by dynamo, forward and backward, and no later step compiles anything again."""

import pytest
import torch
from torch._dynamo.utils import counters

from ess.config import Config
from ess.models.build import build_model
from ess.models.encoders import pairs
from ess.training.objective import Objective

QUICK = ("fpn", "resnet18")


@pytest.mark.parametrize(
    ("arch", "encoder"), [QUICK, *(pytest.param(*pair, marks=pytest.mark.long) for pair in pairs() if pair != QUICK)]
)
def test_every_pair_compiles_and_not_again_after_three_steps(monkeypatch, arch, encoder):
    """On the meta device, where no numbers are computed, by the backend that traces like inductor does."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend="aot_eager"))
    torch._dynamo.reset()
    with torch.device("meta"):
        objective = Objective(build_model(arch, encoder, classes=20, dim=6), Config(compile=True)).train()
    counters.clear()
    seen = []
    for _ in range(5):
        objective._network(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] > 0 and seen[2] == seen[4]
    assert all(parameter.grad is not None for parameter in objective.model.decoder.parameters())
