"""Looking at the model from outside while it trains: held-out loss, loss by position, a few samples."""

from typing import Any

from moesaic.data import DataFolder
from moesaic.evals import bits_per_byte, loss_by_position
from moesaic.model import Transformer
from moesaic.recipe import Stage
from moesaic.train.metrics import MetricsLog

EVALUATION_TOKENS = 32_768  # held-out tokens of each source
CURVE_TOKENS = 24_576  # held-out tokens of each source in the documents whose ends are read at every position
PROMPTS = ("Hello! How are you today?", "What do you like to do on weekends?", "Do you have any pets?")


class Watch:
    """Writes `evaluation`, `loss_by_position` and `sample` events into metrics.jsonl."""

    def __init__(self, data: DataFolder, model: Transformer, log: MetricsLog) -> None:
        self.data, self.model, self.log = data, model, log

    def bits(self, stage: Stage, step: int) -> None:
        """Bits per byte of every source of the stage, at its sequence length."""
        results = {
            name: bits_per_byte(self.model, self.data, name, stage.seq_len, EVALUATION_TOKENS) for name in stage.sources
        }
        self._event(
            "evaluation",
            stage,
            step,
            bits_per_byte={name: b.bits_per_byte for name, b in results.items() if b is not None},
            standard_error={name: b.standard_error for name, b in results.items() if b is not None},
        )

    def curve(self, stage: Stage, step: int, *, before: bool) -> None:
        """Loss by position on long documents. `before` marks the look at a model that the stage has not touched;

        its `step` is the first to come, so that a resume repeats it exactly when it repeats that step.
        """
        points = loss_by_position(self.model, self.data, stage.sources, stage.seq_len, CURVE_TOKENS)
        self._event("loss_by_position", stage, step, before=before, points=points)

    def sample(self, stage: Stage, step: int) -> None:
        """Replies to a few fixed prompts, greedy, for the report."""
        from moesaic.model.generate import SamplingSettings, generate_tokens

        tokenizer = self.data.tokenizer
        if tokenizer.chat_template is None:  # a given tokenizer without one: there is no way to ask
            return
        for prompt in PROMPTS:
            ids = tokenizer.render_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
            if len(ids) >= self.model.config.context:
                continue
            settings = SamplingSettings(temperature=0, max_tokens=48, stop_ids=tokenizer.stop_ids)
            reply = [s.token for s in generate_tokens(self.model, ids, settings)]
            text = tokenizer.decode(reply)
            self._event("sample", stage, step, prompt=prompt, reply=text)

    def _event(self, event: str, stage: Stage, step: int, **values: Any) -> None:
        # `at_step`, not `step`: in metrics.jsonl a step stands once.
        self.log.write({"event": event, "stage": stage.name, "at_step": step, "seq_len": stage.seq_len} | values)
