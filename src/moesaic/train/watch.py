"""Looking at the model from outside while it trains: held-out loss, loss by position, a few samples."""

from typing import Any

from moesaic.data import DataFolder
from moesaic.evals import bits_per_byte, loss_by_position
from moesaic.model import Transformer
from moesaic.recipe import Stage
from moesaic.train.metrics import MetricsLog

EVALUATION_TOKENS = 65_536  # held-out tokens of each source
PROMPTS = ("Hello! How are you today?", "What do you like to do on weekends?", "Do you have any pets?")


class Watch:
    """Writes `evaluation` and `sample` events into metrics.jsonl."""

    def __init__(self, data: DataFolder, model: Transformer, log: MetricsLog) -> None:
        self.data, self.model, self.log = data, model, log

    def evaluate(self, stage: Stage, step: int, *, before: bool) -> None:
        """Bits per byte of every source of the stage at its sequence length, and loss by position on long documents.

        `before` marks the look at a model that the stage has not touched yet; its `step` is the first to come, so
        that a resume repeats it exactly when it repeats that step.
        """
        event: dict[str, Any] = {"event": "evaluation", "stage": stage.name, "step": step, "before": before}
        event["seq_len"] = stage.seq_len
        bits = {s: bits_per_byte(self.model, self.data, s, stage.seq_len, EVALUATION_TOKENS) for s in stage.sources}
        event["bits_per_byte"] = {s: b.bits_per_byte for s, b in bits.items() if b is not None}
        event["standard_error"] = {s: b.standard_error for s, b in bits.items() if b is not None}
        event["loss_by_position"] = loss_by_position(
            self.model, self.data, stage.sources, stage.seq_len, 4 * EVALUATION_TOKENS
        )
        self.log.write(event)

    def sample(self, stage: Stage, step: int) -> None:
        """Replies to a few fixed prompts, greedy, for the report."""
        from moesaic.model.generate import SamplingSettings, generate_tokens

        tokenizer = self.data.tokenizer
        for prompt in PROMPTS:
            ids = tokenizer.render_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
            settings = SamplingSettings(max_tokens=48, stop_ids=tokenizer.stop_ids)
            reply = [s.token for s in generate_tokens(self.model, ids, settings)]
            text = tokenizer.decode(reply)
            self.log.write(
                {"event": "sample", "stage": stage.name, "step": step, "prompt": prompt, "reply": text}
            )
