"""How evenly the router spreads tokens over experts, as text: one row per layer, one column per expert.

python examples/expert_load.py runs/pocket
"""

import json
import sys
from pathlib import Path

SHADES = " .:-=+*#%@"  # a blank is an expert without tokens, @ twice an even share or more

text = (Path(sys.argv[1]) / "metrics.jsonl").read_text(encoding="utf-8")
steps = [line for line in map(json.loads, text.splitlines()) if line.get("load")]
for step in (steps[0], steps[-1]):
    print(f"step {step['step']}, loss {step['loss']:.3f}")
    for number, layer in enumerate(step["load"]):
        shares = [share * len(layer) for share in layer]  # 1 is an even share
        cells = "".join(SHADES[min(9, round(share * 4.5))] for share in shares)
        print(f"  layer {number:<3} [{cells}]  least {min(shares):.2f}, most {max(shares):.2f} of an even share")
