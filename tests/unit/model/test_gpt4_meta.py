"""The described system builds, at its full size, from the same code as the pocket one: on the meta device."""

import pytest
import torch

from moesaic import read_recipe
from moesaic.model import Transformer


@pytest.fixture(scope="module")
def gpt4() -> Transformer:
    with torch.device("meta"):
        return Transformer(read_recipe("gpt4").model)


def test_the_module_has_the_described_number_of_parameters(gpt4: Transformer) -> None:
    total = sum(p.numel() for p in gpt4.parameters())
    assert total == gpt4.config.parameters()
    assert round(total / 1e9, 1) == 1832.6


def test_active_parameters_flop_and_cache_are_the_described_ones(gpt4: Transformer) -> None:
    config = gpt4.config
    assert round(config.active_parameters / 1e9, 1) == 278.9
    assert round(config.forward_flops_per_token / 1e9, 1) == 557.8
    assert config.kv_bytes_per_token() == 61_440


def test_active_parameters_are_those_of_a_module_with_only_the_chosen_experts(gpt4: Transformer) -> None:
    config = gpt4.config
    with torch.device("meta"):
        chosen = Transformer(config.model_copy(update={"n_experts": config.top_k, "n_layers": 1}))
    layer = sum(p.numel() for p in chosen.layers.parameters())
    # The router keeps a row for each of the 16 experts.
    layer += config.d_model * (config.n_experts - config.top_k)
    outside = config.embedding_parameters + config.d_model
    assert config.n_layers * layer + outside == config.active_parameters


@pytest.mark.parametrize("name", ["pocket", "desk", "card", "node"])
def test_every_smaller_recipe_counts_its_module_right(name: str) -> None:
    config = read_recipe(name).model
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(config).parameters()) == config.parameters()
