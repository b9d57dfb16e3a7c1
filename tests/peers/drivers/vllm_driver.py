"""Greedy tokens and log-probabilities from vLLM on the CPU. Runs in .peers/vllm: REQUEST.json ANSWER.json."""

import json
import os
import sys
from pathlib import Path


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; it would take half of the memory
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other processes share these cores
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, so that it ends with it
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",  # it would compile a row of log-probabilities, which takes a C++ compiler
        "OMP_NUM_THREADS": str(request["threads"]),
    }
    import vllm  # here: it reads the environment

    longest = max(map(len, request["prompts"])) + max(request["new_tokens"], *map(len, request["continuations"])) + 1
    llm = vllm.LLM(
        model=request["model"],
        dtype="float32",
        max_model_len=longest,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,  # a cached prefix has no log-probabilities
        logprobs_mode="raw_logprobs",
        skip_tokenizer_init=True,  # ids in, ids out
    )
    greedy = llm.generate(
        [{"prompt_token_ids": ids} for ids in request["prompts"]],
        vllm.SamplingParams(temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False),
    )
    pairs = list(zip(request["prompts"], request["continuations"], strict=True))
    forced = llm.generate(
        [{"prompt_token_ids": prompt + continuation} for prompt, continuation in pairs],
        vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False),
    )
    log_probs = []
    for (prompt, continuation), out in zip(pairs, forced, strict=True):
        by_position = out.prompt_logprobs[len(prompt) :]
        log_probs.append([p[token].logprob for p, token in zip(by_position, continuation, strict=True)])
    answer = {
        "version": vllm.__version__,
        "greedy": [list(out.outputs[0].token_ids) for out in greedy],
        "log_probs": log_probs,
    }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
