"""What a recipe's model costs, from its shape alone: no torch, no weights.

python examples/count_parameters.py pocket gpt4
"""

import sys

import moesaic

print(f"{'recipe':<10}{'parameters':>16}{'active':>16}{'FLOP/token':>12}{'cache/token':>13}{'state':>13}")
for name in sys.argv[1:] or ["pocket", "desk", "card", "node", "gpt4"]:
    model = moesaic.read_recipe(name).model
    state_gb = 16 * model.parameters() / 1e9  # fp32 weights, gradients and two moments of AdamW
    print(
        f"{name:<10}{model.parameters() / 1e6:>14,.1f} M{model.active_parameters / 1e6:>14,.1f} M"
        f"{model.forward_flops_per_token / 1e9:>10,.2f} G{model.kv_bytes_per_token():>11,} B"
        f"{state_gb:>10,.1f} GB"
    )
