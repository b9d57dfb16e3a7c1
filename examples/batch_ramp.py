"""The batch ramp of a recipe's first stage, in every unit that matters, and the pipeline bubble it leaves.

python examples/batch_ramp.py gpt4
"""

import sys

import moesaic

recipe = moesaic.read_recipe(sys.argv[1] if len(sys.argv) > 1 else "gpt4")
stage, layout, model = recipe.stages[0], recipe.layout, recipe.model
print(f"{layout.world:,} devices: tensor {layout.tp} x pipeline {layout.pp} x data {layout.dp} x context {layout.cp}")
print(
    f"{'after tokens':>20}{'batch tokens':>14}{'sequences':>11}{'tokens/expert':>15}{'micro-batches':>15}{'bubble':>8}"
)
for step in stage.batch:
    sequences = step.tokens // stage.seq_len
    micro_batches = sequences // layout.dp // stage.micro_batch  # of each replica
    bubble = (layout.pp - 1) / (micro_batches + layout.pp - 1)  # plain 1F1B
    per_expert = step.tokens * model.top_k // model.n_experts
    print(
        f"{step.after_tokens:>20,}{step.tokens:>14,}{sequences:>11,}{per_expert:>15,}{micro_batches:>15}{bubble:>8.1%}"
    )
