"""Greedy tokens and log-probabilities from llama.cpp's server. Runs in .peers/llama_cpp: REQUEST.json ANSWER.json.

The server is that of the xllamacpp wheel, inside this process, and is asked over loopback HTTP.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

CERTAIN = 1e4  # a logit bias that no logit outweighs
ALL = 1_000_000  # more tokens than any vocabulary has


def start(request: dict[str, Any]) -> xllamacpp.Server:
    longest = max(map(len, request["prompts"])) + max(request["new_tokens"], *map(len, request["continuations"])) + 1
    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_ctx, params.n_parallel = longest, 1
    params.fit_params = False  # it would choose a shorter context where memory is short
    params.n_gpu_layers = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.warmup = params.ui = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def complete(address: str, prompt: list[int], **settings: object) -> dict[str, Any]:
    """The server's answer to token ids; it adds no token of its own to them."""
    body = {"prompt": prompt, "temperature": 0.0, "cache_prompt": True, "return_tokens": True, "n_probs": 1}
    post = urllib.request.Request(f"{address}/completion", json.dumps(body | settings).encode())
    post.add_header("Content-Type", "application/json")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(post) as response:
        answer: dict[str, Any] = json.load(response)
    if answer["tokens_evaluated"] != len(prompt):
        raise RuntimeError(f"{answer['tokens_evaluated']} tokens were read of a prompt of {len(prompt)}")
    return answer


def greedy(address: str, prompt: list[int], new_tokens: int) -> list[int]:
    """Goes on after a token that ends texts; telling the server to ignore those would forbid them."""
    new: list[int] = []
    while len(new) < new_tokens:
        answer = complete(address, prompt + new, n_predict=new_tokens - len(new))
        if not answer["tokens"]:
            raise RuntimeError(f"no token after {len(new)} of {new_tokens}: {answer['stop_type']}")
        new += answer["tokens"]
    return new


def log_prob(address: str, prompt: list[int], token: int, whole: int) -> float:
    """A bias makes the server choose `token`; the log-probability that it reports is from before the bias.

    It reports none of a token whose text is part of a character. Then `whole` is chosen, a token whose text is not,
    and `token` is looked up in the list of all tokens, which is slow for a large vocabulary.
    """
    answer = complete(address, prompt, n_predict=1, logit_bias=[[token, CERTAIN]])
    if answer["tokens"] != [token]:
        raise RuntimeError(f"{answer['tokens']} came where {token} was forced")
    if "completion_probabilities" in answer:
        return float(answer["completion_probabilities"][0]["logprob"])
    answer = complete(address, prompt, n_predict=1, logit_bias=[[whole, CERTAIN]], n_probs=ALL)
    every = answer["completion_probabilities"][0]["top_logprobs"]
    return next(float(one["logprob"]) for one in every if one["id"] == token)


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    server = start(request)
    address = server.listening_address
    whole = request["prompts"][0][0]  # of a prompt in plain ASCII
    log_probs = [
        [log_prob(address, prompt + continuation[:i], token, whole) for i, token in enumerate(continuation)]
        for prompt, continuation in zip(request["prompts"], request["continuations"], strict=True)
    ]
    answer = {
        "version": xllamacpp.__version__,
        "greedy": [greedy(address, prompt, request["new_tokens"]) for prompt in request["prompts"]],
        "log_probs": log_probs,
    }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
