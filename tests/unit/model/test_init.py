"""Initial weights are a function of seed, name and global layer index: not of device, order or who else is there."""

import math

import pytest
import torch

from moesaic.model import Transformer, initial_value, initialise
from moesaic.recipe import Model
from tiny import MODEL, model


def weights(built: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in built.named_parameters()}


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    first, again, other = (weights(model(seed)) for seed in (5, 5, 6))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        assert name.endswith("norm.weight") or not torch.equal(tensor, other[name]), name


def test_the_state_of_the_global_generators_plays_no_part_and_is_left_alone() -> None:
    torch.manual_seed(1)
    first = weights(model())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = weights(model())
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_weight_is_drawn_by_its_name_alone() -> None:
    """So that a process which holds only layer 3 draws the weights that layer 3 has in the whole."""
    whole = Transformer(Model.model_validate(MODEL | {"n_layers": 4}))
    initialise(whole, seed=3)
    for name, tensor in reversed(list(weights(whole).items())):
        assert torch.equal(initial_value(whole.config, name, tensor.shape, seed=3), tensor), name


def test_no_two_tensors_are_alike() -> None:
    seen = [(n, t.flatten()[:8].tolist()) for n, t in weights(model()).items() if not n.endswith("norm.weight")]
    assert len({tuple(values) for _, values in seen}) == len(seen)


def test_the_default_device_plays_no_part() -> None:
    """Built on meta and moved, or built in place: equal; and a default device of meta does not reach the draw."""
    expected = weights(model())
    config = Model.model_validate(MODEL | {"init_std": 0.2})
    with torch.device("meta"):
        built = Transformer(config)
    assert all(p.is_meta for p in built.parameters())
    built = built.to_empty(device="cpu")
    with torch.device("meta"):
        initialise(built, seed=1)
    for name, tensor in weights(built).items():
        assert torch.equal(tensor, expected[name]), name


def test_weights_in_bf16_are_the_rounded_ones() -> None:
    exact = weights(model())
    half = Transformer(Model.model_validate(MODEL | {"init_std": 0.2})).to(torch.bfloat16)
    initialise(half, seed=1)
    for name, tensor in weights(half).items():
        assert torch.equal(tensor, exact[name].bfloat16()), name


def test_spread_of_each_kind_of_weight() -> None:
    """init_std everywhere, by 1 / sqrt(2 layers) less where a product enters the residual stream; norms are one."""
    built = model(init_std=0.02, n_layers=8, d_model=64)
    for name, tensor in weights(built).items():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all()
            continue
        wanted = 0.02 / math.sqrt(16) if name.endswith(("wo", "w_out")) else 0.02
        error_of_estimate = 1 / math.sqrt(2 * tensor.numel())
        assert float(tensor.std()) == pytest.approx(wanted, rel=5 * error_of_estimate), name
