"""Reading a folder takes the memory of its weights, and little more."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moesaic.interop import save_model
from moesaic.model import Transformer
from moesaic.recipe import Model

# About 300 MB each, in tensors of at most 17 MB.
SHAPE = {"vocab_size": 4096, "d_model": 1024, "n_heads": 16, "head_dim": 64, "n_kv_heads": 16, "d_ff": 1024,
         "n_experts": 4, "top_k": 2}  # fmt: skip
KINDS = {"bf16": (torch.bfloat16, 8), "fp32": (torch.float32, 4)}  # how stored, layers
READ = """
import re, sys
from pathlib import Path
from moesaic.interop import load_model
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
for folder in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    model = load_model(Path(folder))
    print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures through /proc, which only Linux has")
def test_peak_is_below_1_2_times_the_weights(tmp_path: Path) -> None:
    for name, (dtype, layers) in KINDS.items():
        model = Transformer(Model.model_validate(SHAPE | {"n_layers": layers}), torch.float32).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        save_model(model, tmp_path / name, dtype=dtype)
    command = [sys.executable, "-c", READ, *(str(tmp_path / name) for name in KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line, (dtype, layers) in zip(done.stdout.splitlines(), KINDS.values(), strict=True):
        weights, growth = map(int, line.split())
        assert weights == Model.model_validate(SHAPE | {"n_layers": layers}).parameters() * dtype.itemsize
        assert growth < 1.2 * weights, dtype
