"""How evenly the router spreads tokens over experts, as text: one row per layer, one column per expert.

python examples/expert_load.py runs/pocket
"""

import json
import sys
from pathlib import Path

SHADES = " .:-=+*#%@"  # a blank is an expert without tokens, @ twice an even share or more

lines = [
    json.loads(line)
    for line in (Path(sys.argv[1]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
]
steps = [line for line in lines if line.get("load")]
for line in (steps[0], steps[-1]):
    print(f"step {line['step']}, loss {line['loss']:.3f}")
    for number, layer in enumerate(line["load"]):
        even = 1 / len(layer)
        cells = "".join(SHADES[min(9, round(share / even * 4.5))] for share in layer)
        print(
            f"  layer {number:<3} [{cells}]  least {min(layer) / even:.2f}, most {max(layer) / even:.2f} of even"
        )
