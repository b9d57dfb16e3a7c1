"""Upcycling: the mixture computes what the dense model did, and can become something else."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_helpers import assert_same_weights, small, tokens
from transformers import AutoConfig, AutoModelForCausalLM

from moesaic.errors import ModelError
from moesaic.interop import expert_distance, layer_ranges, load_model, save_model, upcycle
from moesaic.interop.export import export_model, widened
from moesaic.model import Transformer, select_trainable
from moesaic.recipe import read_recipe

ROOT = Path(__file__).parents[3]
SAME = {"rtol": 0, "atol": 1e-5}  # logits here reach about 2; sums of equal experts in another order


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens())


@st.composite
def dense(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from((1, 2, 4)))
    return {
        "n_layers": draw(st.integers(1, 4)),
        "n_heads": heads,
        "n_kv_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        "head_dim": draw(st.sampled_from((8, 12))),
        "tie_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "qk_norm": draw(st.sampled_from((None, "head"))),
        "window": draw(st.sampled_from((None, 5, 100))),
        "init_std": 0.1,
    }


@settings(max_examples=60)
@given(dense(), st.integers(2, 16), st.integers(1, 4), st.integers(0, 2**31), st.data())
def test_logits_are_those_of_the_dense_model(
    changes: dict[str, Any], experts: int, top_k: int, seed: int, data: st.DataObject
) -> None:
    model, top_k = small(**changes), min(top_k, experts)
    wanted = logits(model)
    layers = data.draw(st.lists(st.integers(0, model.config.n_layers - 1), min_size=1, unique=True))
    some = upcycle(model, experts, top_k, layers=layers, seed=seed)
    assert some.config.sparse_layers == tuple(sorted(layers))
    torch.testing.assert_close(logits(some), wanted, **SAME)
    torch.testing.assert_close(logits(upcycle(model, experts, top_k, seed=seed)), wanted, **SAME)
    if some.config.dense_layers:  # the rest in a second turn
        whole = upcycle(some, experts, top_k, seed=seed)
        assert whole.config.sparse_layers == tuple(range(model.config.n_layers))
        torch.testing.assert_close(logits(whole), wanted, **SAME)


def test_experts_are_copies_without_noise_and_routers_are_not() -> None:
    model = upcycle(small(), 8, 2)
    for layer in model.layers:
        assert expert_distance(layer.experts) == 0
        assert len({float(row.norm()) for row in layer.router.weight.detach()}) == 8
        assert float(layer.router.weight.detach().std()) == pytest.approx(model.config.init_std, rel=0.2)
    assert not torch.equal(model.layers[0].router.weight, model.layers[1].router.weight)


def test_what_does_not_change_shares_its_memory() -> None:
    model = small()
    new = upcycle(model, 4, 2, layers=[1])
    assert new.embedding.data_ptr() == model.embedding.data_ptr()
    assert new.layers[0].experts.w_in.data_ptr() == model.layers[0].experts.w_in.data_ptr()
    assert new.layers[1].experts.w_in.shape[0] == 4


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_noise_is_a_share_of_the_weights_deviation_and_differs_by_expert(noise: float) -> None:
    model = small(d_model=64, d_ff=64)
    new = upcycle(model, 4, 2, noise=noise)
    for name in ("w_in", "w_out"):
        before, after = (getattr(m.layers[1].experts, name).detach() for m in (model, new))
        added = after - before
        assert float(added.std()) == pytest.approx(noise * float(before.std()), rel=0.03)
        assert abs(float(added.mean())) < 0.1 * float(added.std())
        assert torch.corrcoef(added.flatten(1)).fill_diagonal_(0).abs().max() < 0.1
    assert expert_distance(new.layers[0].experts) > noise


def test_the_seed_decides_noise_and_routers() -> None:
    a, b, c = (upcycle(small(), 4, 2, noise=0.1, seed=seed) for seed in (5, 5, 6))
    assert_same_weights(a, b)
    assert not torch.equal(a.layers[0].router.weight, c.layers[0].router.weight)
    assert not torch.equal(a.layers[0].experts.w_in, c.layers[0].experts.w_in)


def test_noise_in_bf16_is_the_same_noise_rounded() -> None:
    wide = upcycle(small(), 3, 1, noise=0.5).layers[0].experts.w_out
    narrow = upcycle(small().bfloat16(), 3, 1, noise=0.5).layers[0].experts.w_out
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_pooled_heads_are_means_of_heads(heads: int) -> None:
    model = small(n_kv_heads=4, attention_bias=True)
    new = upcycle(model, 2, 1, n_kv_heads=heads)
    assert new.config.n_kv_heads == heads
    for letter in "kv":
        for kind in "wb":
            before, after = (
                getattr(m.layers[1].attention, kind + letter).detach().view(n, 8, -1)
                for m, n in ((model, 4), (new, heads))
            )
            for h in range(heads):
                mine = before[h * (4 // heads) : (h + 1) * (4 // heads)]
                torch.testing.assert_close(after[h], sum(mine) / len(mine))


@pytest.mark.parametrize("qk_norm", [None, "head"])
def test_pooling_equal_heads_changes_nothing(qk_norm: str | None) -> None:
    model = small(n_kv_heads=4, attention_bias=True, qk_norm=qk_norm)
    with torch.no_grad():
        for layer in model.layers:
            for name in ("wk", "bk", "wv", "bv"):
                rows = getattr(layer.attention, name).view(4, 8, -1)
                rows[1], rows[3] = rows[0], rows[2]
    torch.testing.assert_close(logits(upcycle(model, 2, 1, n_kv_heads=2)), logits(model), **SAME)
    other = logits(upcycle(model, 2, 1, n_kv_heads=1))  # unequal heads: not the same
    assert float((other - logits(model)).abs().max()) > 0.01


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"layers": [0, 2]}, "layer 2 is not a dense layer of this model; it has 0-1"),
    ({}, {"layers": [-1]}, "layer -1 is not a dense layer"),
    ({}, {"n_experts": 1, "top_k": 1}, "1 experts are not a mixture; use 2 or more"),
    ({}, {"n_experts": 2, "top_k": 3}, "top_k = 3 is more than n_experts = 2"),
    ({"n_kv_heads": 4}, {"n_kv_heads": 3}, "4 key/value heads cannot be pooled to 3; use a divisor"),
    ({}, {"n_kv_heads": 4}, "2 key/value heads cannot be pooled to 4"),
    ({}, {"n_kv_heads": 0}, "cannot be pooled to 0"),
    ({"mlp_bias": True}, {}, "biases in the block"),
    ({"n_experts": 8, "top_k": 2}, {}, "has 8 experts already, 2 chosen; upcycle its dense layers with --experts 8"),
    ({"n_experts": 4, "top_k": 2}, {}, "has no dense layer to upcycle"),
    ({"n_experts": 4, "top_k": 2, "dense_layers": (1,)}, {"layers": [0]}, "layer 0 is not a dense layer of this model; "
     "it has 1"),
    ({"n_experts": 4, "top_k": 2, "dense_layers": (1,), "dense_d_ff": 40}, {}, "dense layers of another width"),
    ({"n_experts": 4, "top_k": 2, "dense_layers": (1,), "norm_top_k": False}, {}, "raw routing weights"),
    ({"qk_norm": "all", "n_kv_heads": 4}, {"n_kv_heads": 2}, "normalised together cannot be pooled"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "options", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_upcycled_is_refused(shape: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        upcycle(small(**shape), **({"n_experts": 4, "top_k": 2} | options))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "layers"), [("20-22", [20, 21, 22]), ("0,4, 8-9", [0, 4, 8, 9]), ("3", [3]), ("5-5", [5])]
)
def test_layers_as_people_write_them(text: str, layers: list[int]) -> None:
    assert layer_ranges(text) == layers


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "1-2-3", "5-3", "1,,2", "²"])
def test_layers_that_mean_nothing(text: str) -> None:
    with pytest.raises(ModelError, match="write layers as 20-29 or 0,4,8-11"):
        layer_ranges(text)


def test_experts_in_some_layers_are_stored_as_our_own_kind(tmp_path: Path) -> None:
    model = upcycle(small(n_layers=3), 4, 2, layers=[1], noise=0.1)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    assert_same_weights(again, model)
    assert '"model_type": "moesaic"' in (tmp_path / "m/config.json").read_text()
    with pytest.raises(ValueError, match="moesaic"):
        AutoConfig.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exporting_it_widens_to_all_layers_and_transformers_agrees(
    dtype: torch.dtype, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model = upcycle(small(n_layers=3), 4, 2, layers=[1], noise=0.3)
    save_model(model, tmp_path / "m", tokenizer_folder=tokenizer_folder, dtype=dtype, card="# Card\n")
    said: list[str] = []
    export_model(tmp_path / "m", "hf", tmp_path / "out", say=said.append)
    assert "experts are in 1 of 3 layers" in said[0]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(theirs).__name__ == "MixtralForCausalLM"
    stored = load_model(tmp_path / "m", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, stored(tokens()), rtol=0, atol=1e-4)
    assert load_model(tmp_path / "out").embedding.dtype == dtype
    assert (tmp_path / "out/README.md").read_text() == "# Card\n"


def test_what_others_can_hold_is_not_widened() -> None:
    qwen = small(n_experts=4, top_k=2, qk_norm="head", dense_layers=(0,))
    assert widened(qwen, print) is qwen
    assert widened(dense_model := small(), print) is dense_model


def test_distance_of_experts() -> None:
    experts = small(n_experts=2, top_k=1).layers[0].experts
    assert expert_distance(experts) > 1.4  # unrelated ones
    with torch.no_grad():
        experts.w_in[0], experts.w_out[0] = 0.9, 0.9
        experts.w_in[1], experts.w_out[1] = 1.1, 1.1
    assert expert_distance(experts) == pytest.approx(0.2, rel=1e-4)


def test_training_tells_copies_apart() -> None:
    model = upcycle(small(), 4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    torch.nn.functional.cross_entropy(model(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    optimizer.step()
    for layer in model.layers:
        assert expert_distance(layer.experts) > 0
        rows = layer.experts.w_out.detach().flatten(1)
        assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))


def test_the_recovery_recipe_trains_routers_and_the_upcycled_layers() -> None:
    recipe = read_recipe("recover")
    with torch.device("meta"):
        model = Transformer(recipe.model)
    chosen = select_trainable(model, recipe.stages[0].trainable)
    layers = {int(name.split(".")[1]) for name in chosen}
    assert layers == set(recipe.model.sparse_layers) == set(range(20, 30))
    everything = {
        name for name, _ in model.named_parameters() if name.startswith(tuple(f"layers.{n}." for n in layers))
    }
    assert set(chosen) == everything
    assert {n for n, p in model.named_parameters() if p.requires_grad} == everything
    assert sum("router" in name for name in chosen) == 10
    globs = tomllib.loads((ROOT / "recipes/recover.toml").read_text())["stages"][0]["trainable"]
    assert list(recipe.stages[0].trainable) == globs
