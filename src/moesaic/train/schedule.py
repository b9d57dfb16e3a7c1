"""The learning rate as a pure function of tokens, so that a batch ramp or a resume never bends the curve."""

import math

from moesaic.recipe import Optimizer


def learning_rate(optimizer: Optimizer, tokens_done: int, tokens_total: int) -> float:
    """Rate for the step after which `tokens_done` of the stage's `tokens_total` tokens are trained on.

    Rises linearly from 0 to `lr` over `warmup_tokens`, then falls to `lr * final_share` at `tokens_total` and
    stays there. cosine falls all the way (Loshchilov & Hutter 2017, eq. 5); wsd holds `lr` and falls linearly
    in the last `decay_share` of the stage (Hu et al. 2024, sec. 4). A stage within its warm-up only rises.
    """
    if tokens_done < optimizer.warmup_tokens:
        return optimizer.lr * tokens_done / optimizer.warmup_tokens
    start: float = optimizer.warmup_tokens
    if optimizer.schedule == "wsd":
        start = max(start, tokens_total * (1 - optimizer.decay_share))
    if tokens_done <= start or start >= tokens_total:
        return optimizer.lr
    progress = min(1.0, (tokens_done - start) / (tokens_total - start))
    remaining = 1 - progress if optimizer.schedule == "wsd" else (1 + math.cos(math.pi * progress)) / 2
    return optimizer.lr * (optimizer.final_share + (1 - optimizer.final_share) * remaining)
