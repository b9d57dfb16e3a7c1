"""OpenVINO GenAI's continuous batching, over a folder that `optimum-cli export openvino` made of the model.

Settings: `threads`, `precision` of products, `kv_precision`, `batched_tokens`, `split_fuse`.
"""

from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Generate, drive


def start(model: str, settings: dict[str, Any]) -> tuple[str, Generate]:
    """Compile the model."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1  # GiB
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = settings["batched_tokens"]
    scheduler.dynamic_split_fuse = settings["split_fuse"]
    scheduler.enable_prefix_caching = False
    options = {
        "INFERENCE_PRECISION_HINT": settings["precision"],
        "KV_CACHE_PRECISION": settings["kv_precision"],
        "INFERENCE_NUM_THREADS": settings["threads"],
        "PERFORMANCE_HINT": "LATENCY",  # one stream of batches; the other hint splits the cores
    }
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", options)

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        configs = []
        for n in outputs:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.do_sample, config.ignore_eos = n, False, True
            configs.append(config)
        tensors = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        return [list(one.m_generation_ids[0]) for one in pipeline.generate(tensors, configs)]

    return openvino_genai.__version__, generate


if __name__ == "__main__":
    drive(start)
