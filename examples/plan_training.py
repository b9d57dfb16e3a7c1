"""Plan the described system from Python: does it fit, how long does it train, what hangs on the number of devices?

python examples/plan_training.py [MODEL] [DEVICE]     any recipe, shape or config.json; no torch needed
"""

import sys

from moesaic.plan import train_plan
from moesaic.plan.sheet import Interval

model, device = (*sys.argv[1:], *("gpt4", "a100-80")[len(sys.argv) - 1 :])
sheet = train_plan(model, device, 24_960, price=1.0)
days, dollars = sheet["days"], sheet["run_usd"]
assert isinstance(days, Interval)
assert isinstance(dollars, Interval)
print(f"{sheet.title}: {sheet['memory_gb']:.0f} GB a device, {'fits' if sheet['fits'] else 'does not fit'}")
print(f"{days.p50:.0f} days ({days.p10:.0f} to {days.p90:.0f}), ${dollars.p50 / 1e6:.0f} M at $1 a device-hour")
for row in next(t.rows for t in sheet.tables if t.key == "devices_against_days"):
    print(f"{row['devices_used']:>7,} devices: {row['days'].p50:6.1f} days, ${row['run_usd'].p50 / 1e6:.0f} M")
