"""A minute of training through the Python API; any value of the recipe can be changed behind the folder.

python examples/train_briefly.py runs/brief model.n_layers=2
"""

import sys
from pathlib import Path

import moesaic

BRIEF = [
    "stages.pretrain.tokens=100_000",
    "stages.extend.tokens=20_000",
    "stages.instruct.tokens=20_000",
]

run, *changes = sys.argv[1:] or ["runs/brief"]
recipe = moesaic.read_recipe("pocket", changes or BRIEF)
model = moesaic.train(recipe, Path(run))
if model is not None:  # None after Ctrl-C, which saves a checkpoint
    print(moesaic.load(model).generate("The sea was", max_tokens=30, seed=1))
