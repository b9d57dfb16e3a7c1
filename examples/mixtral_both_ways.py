"""Mixtral weights run here, and ours run there: read from transformers, upcycled, given back.

python examples/mixtral_both_ways.py     needs transformers
"""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.utils import logging

from moesaic.interop import load_model, save_model, upcycle

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(0)
shape = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
shape |= {"num_attention_heads": 4, "num_key_value_heads": 1}
tokens = torch.randint(300, (1, 50))


def same(a: torch.Tensor, b: torch.Tensor) -> str:
    return "equal" if torch.allclose(a, b, rtol=0, atol=1e-4) else "DIFFERENT"


with tempfile.TemporaryDirectory() as place, torch.no_grad():
    mixtral = MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=16))
    mixtral.save_pretrained(f"{place}/mixtral")
    ours = load_model(Path(place, "mixtral"))
    print(f"Mixtral of 16 experts, read here: logits {same(ours(tokens), mixtral(tokens).logits)}")
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(f"{place}/llama")
    dense = load_model(Path(place, "llama"))
    sparse = upcycle(dense, n_experts=16, top_k=2)
    print(f"Llama upcycled to 16 experts: logits {same(sparse(tokens), dense(tokens))}")
    save_model(sparse, Path(place, "ours"))
    again = MixtralForCausalLM.from_pretrained(f"{place}/ours")
    print(f"read by transformers again: logits {same(again(tokens).logits, dense(tokens))}")
