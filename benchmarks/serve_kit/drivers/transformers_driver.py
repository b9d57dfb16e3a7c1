"""transformers: continuous batching (`generate_batch`), or `generate` over padded batches.

Settings: `continuous`, `threads`, `attention`, `experts`; continuous: `page`, `batch_tokens`; else: `batch`.
"""

import os
from typing import Any

import torch
import transformers
from protocol import Generate, drive
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig


def start(model: str, settings: dict[str, Any]) -> tuple[str, Generate]:
    """Load the model."""
    torch.set_num_threads(settings["threads"])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.logging.set_verbosity_error()
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.bfloat16,
        attn_implementation=settings["attention"],
        experts_implementation=settings["experts"],
    ).eval()
    loaded.generation_config.eos_token_id = None  # go on to the last token, whatever it is
    loaded.config.eos_token_id = None
    how = _continuous if settings["continuous"] else _padded
    return transformers.__version__, how(loaded, settings)


def _continuous(model: Any, settings: dict[str, Any]) -> Generate:
    """As `generate_batch` does it, but each request has a length of its own."""

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        pages = sum(-(-(len(p) + n) // settings["page"]) for p, n in zip(prompts, outputs, strict=True))
        config = ContinuousBatchingConfig(
            page_size=settings["page"],
            num_blocks=pages + 8,
            max_batch_tokens=settings["batch_tokens"],
            allow_block_sharing=False,
            use_cuda_graph=False,
        )
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(outputs))
        found: dict[str, list[int]] = {}
        with model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=config, block=True, timeout=60
        ) as manager:
            names = [manager.add_request(list(ids), max_new_tokens=n) for ids, n in zip(prompts, outputs, strict=True)]
            while len(found) < len(names):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if result.error:
                        raise RuntimeError(result.error)
                    found[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("the generation thread has ended")
        return [found[name] for name in names]

    return generate


def _padded(model: Any, settings: dict[str, Any]) -> Generate:
    """Batches of like lengths, padded on the left, each as long as its longest answer."""

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: outputs[i])
        answers: list[list[int]] = [[] for _ in prompts]
        for begin in range(0, len(order), settings["batch"]):
            some = order[begin : begin + settings["batch"]]
            width = max(len(prompts[i]) for i in some)
            ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in some])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in some])
            longest = max(outputs[i] for i in some)
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=longest,
                pad_token_id=0,
            )
            for row, i in enumerate(some):
                answers[i] = out[row, width : width + outputs[i]].tolist()
        return answers

    return generate


if __name__ == "__main__":
    drive(start)
