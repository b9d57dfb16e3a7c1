"""A run folder as training would leave it, made up but plausible; and the recipe that belongs to it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import torch

from moesaic.plan.forecast import forecast
from moesaic.recipe import Recipe, check_recipe
from moesaic.train.checkpoint import CheckpointStore

LAYERS, EXPERTS = 6, 16

RECIPE = """
name = "pocket"
about = "The whole system on a laptop: 16 experts, top-2, dialogue, code and prose."
[model]
vocab_size = 4096
d_model = 256
n_layers = 6
n_heads = 4
d_ff = 256
[data]
sources = [
  { name = "prose", path = "prose.xz", licence = "public domain", epochs = 2 },
  { name = "stdlib", package = "python-stdlib", kind = "code", licence = "PSF-2.0", epochs = 4 },
  { name = "dialogue", package = "chitchat-dataset==1.0", kind = "chat", licence = "MIT", epochs = 2 },
]
[[stages]]
name = "pretrain"
sources = ["prose", "stdlib", "dialogue"]
tokens = 2_000_000
seq_len = 128
batch = [{ tokens = 4096 }, { after_tokens = 500_000, tokens = 8192 }]
optimizer = { lr = 2e-3, warmup_tokens = 100_000, schedule = "wsd" }
[[stages]]
name = "extend"
sources = ["prose", "stdlib"]
tokens = 400_000
seq_len = 512
rope_theta = 40_000.0
batch = [{ tokens = 8192 }]
optimizer = { lr = 5e-4, warmup_tokens = 20_000 }
[[stages]]
name = "instruct"
sources = ["dialogue"]
tokens = 600_000
seq_len = 512
batch = [{ tokens = 8192 }]
optimizer = { lr = 5e-4, warmup_tokens = 20_000 }
"""


def recipe() -> Recipe:
    """The recipe of the made-up run."""
    import tomllib

    return check_recipe(tomllib.loads(RECIPE), "synthetic")


def write_run(folder: Path) -> Path:
    """Write the run folder and return it."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    ours, dice = recipe(), random.Random(0)
    expected = forecast(
        ours, {(s.name, b.tokens): 9000.0 if s.seq_len == 128 else 8200.0 for s in ours.stages for b in s.batch}
    )
    machine = {"device": "CPU with AMX", "threads": 2, "bf16": True, "torch": "2.13.0"}
    (folder / "forecast.json").write_text(json.dumps(expected | {"machine": machine}))
    lines: list[dict[str, Any]] = []
    step = clock = 0
    skew = [[dice.gauss(0, 0.35) for _ in range(EXPERTS)] for _ in range(LAYERS)]
    for stage in ours.stages:
        done, start = 0, step
        if stage.name == "extend":
            lines.append(curve(stage.name, step + 1, stage.seq_len, before=True))
        while done < stage.tokens:
            batch = stage.batch_tokens(done)
            done, clock, step = done + batch, clock + batch, step + 1
            calm = 0.4 + 1.2 * math.exp(-step / 60)
            raw = [[math.exp(calm * s + dice.gauss(0, 0.05)) for s in layer] for layer in skew]
            rate = (9300 if stage.seq_len == 128 else 7900) + dice.gauss(0, 250)
            lines.append(
                {
                    "step": step,
                    "stage": stage.name,
                    "tokens": clock,
                    "batch_tokens": batch,
                    "batch_sequences": batch // stage.seq_len,
                    "tokens_per_expert": batch / 8,
                    "loss": 3.1 + 5.2 * math.exp(-clock / 3e5) - 1e-7 * clock + dice.gauss(0, 0.06),
                    "balance_loss": 1.0 + calm * 0.1,
                    "z_loss": 0.5,
                    "grad_norm": 0.6 + 3 * math.exp(-(step - start) / 8) + abs(dice.gauss(0, 0.1)),
                    "lr": min(1.0, done / 1e5) * 2e-3 * (1 - 0.8 * done / stage.tokens),
                    "skipped": step == 120,
                    "load": [[x / sum(layer) for x in layer] for layer in raw],
                    "seconds": batch / rate,
                    "tokens_per_second": rate,
                    "model_flops_per_second": rate * 3e7,
                    "peak_share": rate / 17_000,
                    "time_iso": "2026-01-02T03:04:05.678+00:00",
                }
            )
        lines.append(evaluation(stage.name, step))
        if stage.name == "extend":
            lines.append(curve(stage.name, step, stage.seq_len, before=False))
        for prompt, reply in (
            ("Hello! How are you?", "I am fine <3 & you?"),
            ("What is 2 + 2?", "4, I believe."),
        ):
            lines.append({"event": "sample", "stage": stage.name, "at_step": step, "prompt": prompt, "reply": reply})
    lines.append({"event": "resume", "stage": "pretrain", "at_step": 150, "time_iso": "2026-01-02T03:04:05+00:00"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = {
        s.name: {
            "kind": s.kind,
            "licence": s.licence,
            "tokens": 800_000,
            "epochs": share * s.epochs,
            "cap_epochs": s.epochs,
            "tokens_per_epoch": round(800_000 / (share * s.epochs)),
        }
        for s, share in zip(ours.data.sources, (0.4, 0.9, 1.0), strict=True)
    }
    (folder / "ledger.json").write_text(json.dumps({"sources": sources, "total": 2_400_000}))
    store = CheckpointStore(folder / "checkpoints", keep=2, retries=0)
    for at, pin in ((100, True), (200, False), (300, False)):
        store.save(at, {"w": torch.zeros(4096)}, {"step": at}, pin, background=False)
    (folder / "checkpoints" / "step_00000300" / "COMMITTED").unlink()
    return folder


def evaluation(stage: str, step: int) -> dict[str, Any]:
    """Held-out bits after a stage."""
    bits = {"prose": 2.4 - step / 1000, "stdlib": 1.9 - step / 1200, "dialogue": 2.2 - step / 900}
    return {"event": "evaluation", "stage": stage, "at_step": step, "bits_per_byte": bits}


def curve(stage: str, step: int, seq_len: int, before: bool) -> dict[str, Any]:
    """Loss by position, with an error; it rises beyond position 128 before longer context is learned."""
    points = [
        [p, 3.0 + 1.5 / math.sqrt(p / 16 + 1) + (0.004 * (p - 128) if before and p > 128 else 0), 0.1]
        for p in range(16, seq_len + 1, 16)
    ]
    return {"event": "loss_by_position", "stage": stage, "at_step": step, "before": before, "points": points}
