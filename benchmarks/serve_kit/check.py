"""Are the answers right? Each token of an engine, judged by our model in fp32 after the engine's own tokens before it.

In bf16 engines part at near ties, and every text is another from there on, so that equal texts are too much to ask.
A right answer is one whose tokens the exact model finds as good as its best, but for rounding: a token's *gap* is the
logit of the best less its own, in standard deviations of the logits at its position. A wrong engine shows gaps of 1
to 4.

Legend: N new tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from moesaic.model import Transformer

ROUNDING = 0.25  # standard deviations: what bf16 in 12 layers may do to the difference of two logits


def judge(model: Transformer, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> dict[str, Any]:
    """Over all tokens: share that is the exact model's choice, share beyond ROUNDING, largest gap."""
    gaps = torch.cat([_gaps(model, p, a) for p, a in zip(prompts, answers, strict=True)])
    return {
        "tokens": len(gaps),
        "best": float((gaps == 0).float().mean()),
        "beyond_rounding": float((gaps > ROUNDING).float().mean()),
        "largest_gap": float(gaps.max()),
    }


@torch.inference_mode()
def _gaps(model: Transformer, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits_NV = model(torch.tensor([prompt + answer[:-1]]))[0, len(prompt) - 1 :].float()
    chosen_N = logits_NV.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return (logits_NV.max(1).values - chosen_N) / logits_NV.std(1)
