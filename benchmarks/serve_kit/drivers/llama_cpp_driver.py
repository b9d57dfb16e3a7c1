"""llama.cpp's server, inside this process and asked over loopback HTTP.

Settings: `slots`, `threads`, `batch`, `ubatch`, `flash_attention`, `unified` (one cache for all slots).
Tokens that end texts are forbidden by a bias: it has no other way of going on after them.
"""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp
from protocol import Generate, drive

SLOT = 1024  # tokens of a slot: the longest prompt and answer have 768


def start(model: str, settings: dict[str, Any]) -> tuple[str, Generate]:
    """Start the server."""
    slots = settings["slots"]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = slots * SLOT, slots
    params.kv_unified = settings["unified"]
    params.n_batch, params.n_ubatch = settings["batch"], settings["ubatch"]
    params.fit_params = False  # it would choose a shorter context where memory is short
    params.n_gpu_layers = 0
    params.n_threads_http = slots + 4  # each waiting request holds one
    kinds = xllamacpp.llama_flash_attn_type
    flash = settings["flash_attention"]
    params.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.ui = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def complete(prompt: list[int], output: int) -> list[int]:
        body = {
            "prompt": prompt,
            "n_predict": output,
            "temperature": 0.0,
            "samplers": ["top_k"],  # the least work for the likeliest token
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        post = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
        post.add_header("Content-Type", "application/json")
        with opener.open(post) as response:
            tokens: list[int] = json.load(response)["tokens"]
        return tokens

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(complete, prompts, outputs))

    return xllamacpp.__version__, generate


if __name__ == "__main__":
    drive(start)
