"""How often each source of a run was seen, and how often it may be seen at most.

python examples/read_ledger.py runs/pocket
"""

import json
import sys
from pathlib import Path

ledger = json.loads((Path(sys.argv[1]) / "ledger.json").read_text(encoding="utf-8"))
for name, source in ledger["sources"].items():
    seen, cap = source["epochs"], source["cap_epochs"]
    bar = "#" * round(20 * seen / cap)
    print(f"{name:<12}{source['tokens']:>14,} tokens  {seen:5.2f} of {cap} epochs  {bar}")
print(f"{'together':<12}{ledger['total']:>14,} tokens")
