"""FLOPs per token: published speeds give published utilisations, and counts are those of real forward passes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.flops import (
    conventions,
    forward_flops,
    forward_parts,
    palm_training_flops,
    parameter_flops,
    training_flops,
    utilisation,
    visible_tokens,
)
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import known_shapes, read_shape


def gpt(layers: int, width: int, heads: int, vocabulary: int) -> Shape:
    return Shape(
        name="gpt",
        n_layers=layers,
        d_model=width,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        vocab_size=vocabulary,
        ffn_matrices=2,
        biases=True,
        norm_values=2,
    )


MEGASCALE = gpt(96, 12288, 128, 64_000)


def test_palm_utilisation_with_and_without_attention() -> None:
    """Chowdhery et al. 2022, sec. 4.1: 238.3k tokens/s on 6,144 TPU v4 are 46.2 %, 45.7 % without attention."""
    palm = read_shape("palm-540b")
    shares = (
        utilisation(flops, 238.3e3, 6144, 275e12)
        for flops in (palm_training_flops(palm, 2048), 3 * parameter_flops(palm))
    )
    assert [round(100 * s, 1) for s in shares] == [46.2, 45.7]


@pytest.mark.parametrize(
    ("gpus", "batch", "seconds", "mfu"),
    [
        (256, 768, 40.0, 53.0),
        (512, 768, 21.2, 49.9),
        (768, 768, 15.2, 46.7),
        (1024, 768, 11.9, 44.7),
        (3072, 6144, 29.02, 48.7),
        (6144, 6144, 14.78, 47.8),
        (8192, 6144, 12.24, 43.3),
    ],
)
def test_megatron_rows_of_megascale(gpus: int, batch: int, seconds: float, mfu: float) -> None:
    """Jiang et al. 2024 (arXiv:2402.15627), table 2: all scores counted, nothing recomputed."""
    flops = training_flops(MEGASCALE, 2048, causal=False)
    assert 100 * utilisation(flops, batch * 2048 / seconds, gpus, 312e12) == pytest.approx(mfu, abs=0.2)


def test_megascale_rows_fit_only_with_fewer_scores() -> None:
    """Its own rows use windows: counting all scores gives too much, counting half too little or the same."""
    for gpus, batch, seconds, mfu in ((1024, 768, 8.9, 59.0), (12288, 6144, 6.34, 55.2)):
        full, causal = (
            100 * utilisation(training_flops(MEGASCALE, 2048, c), batch * 2048 / seconds, gpus, 312e12)
            for c in (False, True)
        )
        assert full > mfu + 0.5
        assert causal < mfu


def test_the_described_system() -> None:
    gpt4 = read_shape("gpt4")
    assert parameter_flops(gpt4) / 1e9 == pytest.approx(557.8, abs=0.05)
    assert forward_parts(gpt4, 8192).scores / 1e9 == pytest.approx(42.3, abs=0.05)  # 4 s h_w L / 2


@given(st.integers(1, 130), st.integers(8, 20_000), st.integers(1, 8192), st.integers(100, 300_000))
def test_full_recompute_is_narayanans_equation(layers: int, width: int, seq_len: int, vocabulary: int) -> None:
    l, h, s, v = layers, width, seq_len, vocabulary  # noqa: E741
    equation = 96 * l * h * h * (1 + s / (6 * h) + v / (16 * l * h))
    ours = training_flops(gpt(layers, width, 1, vocabulary), seq_len, causal=False, recompute="full")
    assert ours == pytest.approx(equation, rel=1e-12)


@given(st.integers(1, 200), st.none() | st.integers(1, 250))
def test_visible_tokens_are_counted_keys(seq_len: int, window: int | None) -> None:
    counted = sum(min(i + 1, window or seq_len) - 0.5 for i in range(seq_len)) / seq_len  # the diagonal counts half
    assert visible_tokens(seq_len, window) == pytest.approx(counted, rel=1e-12)
    assert visible_tokens(seq_len, window) <= visible_tokens(seq_len, window, causal=False) <= seq_len


@given(st.sampled_from(sorted(known_shapes())), st.integers(1, 100_000))
def test_conventions_are_ordered(name: str, seq_len: int) -> None:
    shape = known_shapes()[name].shape
    c = {key: v.training for key, v in conventions(shape, seq_len).items()}
    assert c["6N_no_embeddings"] < c["6N"] < c["palm"]
    assert c["causal"] <= c["full"] <= c["narayanan"]
    assert c["causal"] <= c["causal_selective"] <= c["causal_full"] <= 4 / 3 * c["causal"] + 1
    assert all(v.forward <= v.training / 3 for v in conventions(shape, seq_len).values())


@given(st.sampled_from(sorted(known_shapes())), st.integers(2, 16_384))
def test_a_window_saves_scores_and_nothing_else(name: str, seq_len: int) -> None:
    shape = replace(known_shapes()[name].shape, window=None, windowed_layers=0)
    narrow = replace(shape, window=seq_len // 2, windowed_layers=shape.n_layers)
    whole, part = forward_parts(shape, seq_len), forward_parts(narrow, seq_len)
    assert part.scores < whole.scores
    assert part.total - part.scores == pytest.approx(whole.total - whole.scores)


LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 3,
}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", LLAMA),
        ("llama", LLAMA | {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
        ("gpt_neox", LLAMA | {"num_key_value_heads": None}),
        ("gemma", LLAMA | {"head_dim": 32, "num_key_value_heads": 1}),
        ("deepseek_v3", LLAMA | LATENT),
        ("deepseek_v3", LLAMA | LATENT | {"q_lora_rank": None}),
    ],
)
def test_a_forward_pass_counts_as_many(kind: str, values: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    from moesaic.plan.hf_shape import shape_from_values

    config = transformers.AutoConfig.for_model(kind, **values)
    seq_len = 48
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, seq_len, dtype=torch.long), use_cache=False)
    ours = forward_flops(shape_from_values(config.to_dict(), kind), seq_len, causal=False) * seq_len
    assert counter.get_total_flops() == ours


def test_selective_recompute_adds_one_pass_over_the_scores() -> None:
    shape = read_shape("gpt4")
    added = training_flops(shape, 8192, recompute="selective") - training_flops(shape, 8192)
    assert added == pytest.approx(4 * (8192 / 2) * 168 * 128 * 120)


def test_experts_count_as_often_as_they_are_visited() -> None:
    shape = read_shape("gpt4")
    one, two = (forward_parts(replace(shape, top_k=k), 8192) for k in (1, 2))
    assert two.feed_forward == 2 * one.feed_forward == 120 * 2 * 2 * 3 * 10_752 * 28_672
    assert two.attention == one.attention


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda s: forward_flops(s, 0), "give a positive length"),
        (lambda s: training_flops(s, 8, recompute="some"), "use one of none, selective, full"),
        (lambda s: utilisation(1, 0, 1, 1), "must be positive"),
    ],
)
def test_bad_input_is_a_short_error(bad: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        bad(read_shape("gpt3"))
