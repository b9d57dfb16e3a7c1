"""Families of decoders on the Hugging Face hub: what their config.json leaves unsaid, one row each; what is refused."""

from dataclasses import dataclass
from typing import Literal

Bias = Literal["none", "all", "qkv", "out", "flag", "flag_qkv"]


@dataclass(frozen=True)
class Family:
    """What a `model_type` means where its config is silent. Defaults are Llama's."""

    matrices: int = 3
    norms: int = 2
    norm_values: int = 1
    bias: Bias = "flag"  # of attention: flag is the key attention_bias
    ffn_bias: bool = False  # beside the key mlp_bias
    qk: Literal["", "head", "all"] = ""
    tied: bool = False  # when the key is absent, as transformers' class has it
    sparse: bool = False  # every config of the family says how many experts it has
    positions: str = ""  # key of the number of learned positions
    spare_positions: int = 0
    four_d: bool = False  # a feed-forward width that is absent is 4 x d_model
    parallel: bool = False
    embedding_norm: bool = False
    head_bias: bool = False
    window: Literal["", "all", "flag", "alternate"] = ""


GPT = {"matrices": 2, "norm_values": 2, "bias": "all", "ffn_bias": True, "four_d": True}
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(bias="none", window="all"),
    "ministral": Family(bias="none", window="all"),
    "mixtral": Family(bias="none", window="all", sparse=True),
    "granite": Family(),
    "granitemoe": Family(sparse=True),
    "smollm3": Family(tied=True),
    "qwen2": Family(bias="qkv", window="flag"),
    "qwen2_moe": Family(bias="qkv", window="flag", sparse=True),
    "qwen3": Family(qk="head", window="flag"),
    "qwen3_moe": Family(qk="head", window="flag", sparse=True),
    "olmo": Family(norm_values=0),
    "olmo2": Family(qk="all"),
    "olmoe": Family(qk="all", sparse=True),
    "phi3": Family(bias="none", window="all"),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, window="alternate", tied=True),
    "gemma3_text": Family(norms=4, qk="head", window="alternate", tied=True),
    "deepseek_v2": Family(sparse=True),
    "deepseek_v3": Family(sparse=True),
    "kimi_k2": Family(sparse=True),
    "glm4_moe": Family(bias="flag_qkv", sparse=True),
    "glm_moe_dsa": Family(sparse=True),
    "deepseek_v32": Family(sparse=True),
    "minimax_m2": Family(bias="none", qk="all", sparse=True),
    "gpt_oss": Family(bias="all", ffn_bias=True, window="alternate", sparse=True),
    "llama4_text": Family(sparse=True),
    "nemotron": Family(matrices=2, norm_values=2),
    "starcoder2": Family(matrices=2, norm_values=2, bias="all", ffn_bias=True, window="all", tied=True),
    "stablelm": Family(norm_values=2, bias="none"),
    "cohere": Family(norms=1, parallel=True, tied=True),
    "gpt2": Family(**GPT, positions="n_positions", tied=True),  # type: ignore[arg-type]
    "gpt_bigcode": Family(**GPT, positions="n_positions", tied=True),  # type: ignore[arg-type]
    "gpt_neo": Family(
        2, 2, 2, "out", True, positions="max_position_embeddings", four_d=True, window="alternate", tied=True
    ),
    "gpt_neox": Family(**GPT),  # type: ignore[arg-type]
    "gptj": Family(2, 1, 2, "none", True, four_d=True, parallel=True, head_bias=True),
    "opt": Family(**GPT, positions="max_position_embeddings", spare_positions=2, tied=True),  # type: ignore[arg-type]
    "bloom": Family(**GPT, embedding_norm=True, tied=True),  # type: ignore[arg-type]
    "falcon": Family(2, 2, 2, "none", four_d=True, tied=True),
    "phi": Family(2, 1, 2, "all", True, parallel=True, head_bias=True),
}
REFUSED = {
    "state spaces or linear attention": (
        "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 minimax minimax_m1 "
        "nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_text qwen3_5_moe_text qwen3_next recurrent_gemma rwkv "
        "bailing_hybrid xlstm zamba zamba2"
    ),
    "an encoder": (
        "albert bart bert deberta deberta-v2 distilbert electra mbart modernbert mt5 pegasus roberta t5 umt5 "
        "whisper xlm-roberta clip siglip vit"
    ),
    "attention or parameters that differ from layer to layer": (
        "deepseek_v4 diffllama gemma3n gemma3n_text gemma4 gemma4_text"
    ),
}
KINDS = {"full_attention", "attention", "sliding_attention", "chunked_attention", "local", "global"}
