"""The connector against the formula, and against LLaVA's own layout of `mm_projector`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fvexport.encoder.config import ConnectorConfig
from fvexport.encoder.connector import Connector
from fvexport.encoder.seeded import seed_weights

KINDS = ["identity", "linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu"]


def connector(kind: str) -> Connector:
    made = Connector(ConnectorConfig(kind, 24, 24 if kind == "identity" else 10)).double()
    seed_weights(made, 3)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formula(kind: str) -> None:
    made = connector(kind)
    x = np.random.default_rng(0).standard_normal((2, 5, 24))
    wanted = x
    for index, layer in enumerate(m for m in made if isinstance(m, nn.Linear)):
        if index:
            wanted = wanted * 0.5 * (1 + np.vectorize(math.erf)(wanted / math.sqrt(2)))
        wanted = wanted @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    found = made(torch.from_numpy(x)).detach().numpy()
    assert found.shape == (2, 5, 24 if kind == "identity" else 10)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_those_of_llava(kind: str) -> None:
    layers = ConnectorConfig(kind, 24, 24).num_layers
    names = {f"{2 * index}.{part}" for index in range(layers) for part in ("weight", "bias")}
    assert set(connector(kind).state_dict()) == names


def test_made_ready_to_run() -> None:
    assert not connector("mlp2x_gelu").training


def test_default_width_is_that_of_the_smallest_model() -> None:
    with torch.device("meta"):
        made = Connector(ConnectorConfig())
    assert [tuple(p.shape) for p in made.parameters()] == [(896, 3072), (896,), (896, 896), (896,)]
