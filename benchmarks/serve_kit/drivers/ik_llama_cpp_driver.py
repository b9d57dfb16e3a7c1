"""ik_llama.cpp through the C functions of its Python package: it ships no server, so this batches by itself.

All prompts are read first, in batches of `ubatch` tokens; then every step takes the next token of each answer.
Settings: `slots`, `threads`, `ubatch`, `flash_attention`.
"""

import ctypes
import os
from typing import Any

import ik_llama_cpp
from ik_llama_cpp import _ctypes_api as api
from protocol import Generate, drive

SLOT = 1024


def start(model: str, settings: dict[str, Any]) -> tuple[str, Generate]:
    """Load the model."""
    slots, ubatch = settings["slots"], settings["ubatch"]
    api.llama_backend_init()
    loaded = api.llama_model_load_from_file(os.fsencode(model), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx, params.n_seq_max = slots * SLOT, slots
    params.n_batch = params.n_ubatch = ubatch
    params.n_threads = params.n_threads_batch = settings["threads"]
    params.flash_attn = settings["flash_attention"]
    context = api.llama_init_from_model(loaded, params)
    if not context:
        raise RuntimeError("the context could not be made")
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(loaded))
    batch = api.llama_batch_init(ubatch, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of (token, position, sequence, wanted); the likeliest next token of each wanted one."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if status := api.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode says {status}")
        return [_likeliest(api.llama_get_logits_ith(context, i), size) for i, row in enumerate(rows) if row[3]]

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        api.llama_kv_cache_clear(context)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = [(t, p, s, p == len(ids) - 1) for s, ids in enumerate(prompts) for p, t in enumerate(ids)]
        for begin in range(0, len(rows), ubatch):
            some = rows[begin : begin + ubatch]
            for row, token in zip((r for r in some if r[3]), decode(some), strict=True):
                answers[row[2]].append(token)
        while writing := [s for s, n in enumerate(outputs) if len(answers[s]) < n]:
            step = [(answers[s][-1], len(prompts[s]) + len(answers[s]) - 1, s, True) for s in writing]
            for sequence, token in zip(writing, decode(step), strict=True):
                answers[sequence].append(token)
        return answers

    return ik_llama_cpp.__version__, generate


def _likeliest(logits: Any, size: int) -> int:
    import numpy as np

    return int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (size,)).argmax())


if __name__ == "__main__":
    drive(start)
