"""A stage of training: what it reads, how long, at which batch and learning rate."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesaic.recipe.base import Part


class BatchStep(Part):
    """One step of the batch ramp."""

    after_tokens: NonNegativeInt = 0
    """Tokens of this stage after which this batch size begins. | tokens | gradients get less noisy later or earlier."""
    tokens: PositiveInt
    """Size of the global batch: sequences x seq_len. | tokens | the ramp should be flatter or steeper."""
    dp: PositiveInt | None = None
    """Data-parallel replicas while this batch lasts; none is `layout.dp`. Between two values the run goes through a checkpoint. | ranks | small batches would leave pipelines idle."""


class Optimizer(Part):
    """AdamW and its schedule, which is a function of tokens and never of steps."""

    lr: PositiveFloat = 1e-3
    """Peak learning rate. | none | loss spikes (lower) or falls slowly (raise)."""
    vector_factor: PositiveFloat = 1.0
    """Rate of embedding, head and norms as a multiple of `lr`: a matrix of a wider model needs a lower rate, they do not (Yang et al. 2022, table 8). | factor | a model learns slowly at first: 8 to 16."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Cosine, or warm-up-stable-decay (Hu et al. 2024). | none | the end is not known in advance: wsd."""
    warmup_tokens: NonNegativeInt = 0
    """Tokens over which the rate rises from zero. | tokens | early spikes."""
    decay_share: NonNegativeFloat = Field(default=0.2, le=1.0)
    """Last share of the stage in which wsd falls linearly. | share | rarely."""
    final_share: NonNegativeFloat = Field(default=0.1, le=1.0)
    """Rate at the end as a share of the peak. | share | another stage follows at a higher rate."""
    beta1: NonNegativeFloat = 0.9
    """Decay of the first moment. | none | rarely."""
    beta2: NonNegativeFloat = 0.95
    """Decay of the second moment. | none | small batches: nearer to 1."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment. | none | rarely."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices; norms, embedding and head are exempt. | none | many epochs (raise)."""
    clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm. | norm | rarely."""
    spike_factor: NonNegativeFloat = 10.0
    """A step whose gradient norm exceeds this multiple of the median of the last 64 (or is not finite) is skipped; 0 skips only what is not finite. | factor | data with rare, honest extremes."""


class Stage(Part):
    """One stage. Stages of a run follow each other and count steps and tokens on."""

    name: str
    """Name of the stage; `--stage` selects by it. | none | never after it began."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Names of the sources it reads. | none | the stage should see other data."""
    weights: dict[str, PositiveFloat] | None = None
    """Share of tokens by source; without it, sources mix in proportion to tokens x epochs. | share | a small source should count more."""
    loss_on: Literal["all", "assistant"] = "all"
    """Which tokens of a dialogue are learned: every one, or only the assistant's turns. | none | instruct stages: assistant."""
    tokens: PositiveInt
    """Tokens to train on; ends earlier when every source reached its epochs. | tokens | the budget changes."""
    seq_len: PositiveInt
    """Length of packed sequences. | tokens | memory, or longer context."""
    batch: tuple[BatchStep, ...] = Field(min_length=1)
    """Batch ramp, the first step with after_tokens = 0. | tables | see BatchStep."""
    micro_batch: PositiveInt = 8
    """Sequences in one forward and backward on a device. | sequences | memory runs out (lower) or is left (raise)."""
    optimizer: Optimizer = Optimizer()
    """AdamW and its schedule. | table | see Optimizer."""
    rope_theta: PositiveFloat | None = None
    """New rotary base from this stage on (adjusted base frequency, Xiong et al. 2023, sec. 2). | none | the stage extends the context."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of matrix products; weights and sums stay fp32. auto takes bf16 where the device has it. | none | exact comparisons: fp32."""
    init: str | None = None
    """Model folder to start from instead of the previous stage. | path | continuing another model."""
    trainable: tuple[str, ...] = ("*",)
    """Globs of parameter names that learn; the rest is frozen. | globs | tuning only a part."""
    teacher: str | None = None
    """Model folder whose next-token distribution is learned beside the labels. | path | distillation."""
    teacher_share: NonNegativeFloat = Field(default=0.5, le=1.0)
    """Share of the loss that comes from the teacher. | share | the teacher is much better (raise)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch[0].after_tokens != 0:
            raise ValueError(f"stage {self.name!r}: the first batch step must have after_tokens = 0")
        starts = [b.after_tokens for b in self.batch]
        if sorted(set(starts)) != starts:
            raise ValueError(f"stage {self.name!r}: after_tokens must rise from step to step, got {starts}")
        for step in self.batch:
            if step.tokens % self.seq_len:
                raise ValueError(
                    f"stage {self.name!r}: a batch of {step.tokens} tokens is not a whole number of sequences of "
                    f"{self.seq_len}; use {max(1, round(step.tokens / self.seq_len)) * self.seq_len}"
                )
        if unknown := set(self.weights or {}) - set(self.sources):
            raise ValueError(f"stage {self.name!r}: weights for sources it does not read: {sorted(unknown)}")
        if self.weights and (missing := set(self.sources) - set(self.weights)):
            raise ValueError(f"stage {self.name!r}: no weight for {sorted(missing)}; give one for every source")
        return self

    def batch_tokens(self, tokens_done: int) -> int:
        """Global batch in tokens after `tokens_done` tokens of this stage."""
        return [b.tokens for b in self.batch if b.after_tokens <= tokens_done][-1]
