"""Parts of scenario files for the tests of `plan compare`."""

TOP = """
[training]
source = "gpt4"
tokens = "13T"
batch = "60M"
[money]
storage_tb = 1e-6
"""
A100 = """
[[scenarios]]
name = "A100"
hardware = "a100-80"
count = 24_960
mode = "rent"
prices = "described"
training = { run_mfu = [0.32, 0.36] }
"""
H100 = """
[[scenarios]]
name = "H100"
hardware = "h100"
count = 8_192
mode = "rent"
prices = "described"
training = { run_mfu = [0.38, 0.43], claimed_days = 55 }
"""
SERVE = """
[serving]
requests_per_s = 50
prompt = 1500
output = 300
ttft_s = 3
tpot_ms = 100
weights = "fp8"
tp = 8
pp = 16
"""
