"""Reading a folder takes the memory of its weights, and little more."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moesaic.interop import save_model
from moesaic.model import Transformer
from moesaic.recipe import Model

# 75 M parameters: 300 MB in fp32, in tensors of at most 17 MB.
SHAPE = {"vocab_size": 4096, "d_model": 1024, "n_layers": 4, "n_heads": 16, "head_dim": 64, "n_kv_heads": 16,
         "d_ff": 1024, "n_experts": 4, "top_k": 2}  # fmt: skip
READ = """
import re, sys
from pathlib import Path
from moesaic.interop import load_model
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
for folder in sys.argv[1:]:
    before = status("VmRSS")
    model = load_model(Path(folder))
    print(sum(p.nbytes for p in model.parameters()), status("VmHWM") - before)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures through /proc, which only Linux has")
def test_peak_is_below_1_2_times_the_weights(tmp_path: Path) -> None:
    model = Transformer(Model.model_validate(SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}  # the larger one last: the peak is that of the process
    for name, dtype in kinds.items():
        save_model(model, tmp_path / name, dtype=dtype)
    command = [sys.executable, "-c", READ, *(str(tmp_path / name) for name in kinds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line, dtype in zip(done.stdout.splitlines(), kinds.values(), strict=True):
        weights, growth = map(int, line.split())
        assert weights == model.config.parameters() * dtype.itemsize
        assert growth < 1.2 * weights, dtype
