"""vLLM on the CPU. Settings: `eager`, `max_num_batched_tokens`, `threads`, `separate` (another process)."""

import os
from typing import Any

from protocol import Generate, drive


def start(model: str, settings: dict[str, Any]) -> tuple[str, Generate]:
    """Load the model; compile it unless `eager`."""
    cores = sorted(os.sched_getaffinity(0))[: settings["threads"]]
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; it would take half of the memory
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(settings.get("separate", False))),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    import vllm  # here: it reads the environment

    llm = vllm.LLM(
        model=model,
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=settings.get("max_num_seqs", 64),
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        enforce_eager=settings["eager"],
        enable_prefix_caching=False,  # a prompt comes twice: for its first token, and for all
        skip_tokenizer_init=True,  # ids in, ids out
    )

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        out = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            [vllm.SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in outputs],
            use_tqdm=False,
        )
        return [list(one.outputs[0].token_ids) for one in out]

    return vllm.__version__, generate


if __name__ == "__main__":
    drive(start)
