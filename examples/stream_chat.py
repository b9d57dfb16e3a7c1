"""One question, answered piece by piece.

python examples/stream_chat.py runs/pocket/model "What did you do today?"
"""

import sys

import moesaic

model = moesaic.load(sys.argv[1])
messages = [{"role": "user", "content": sys.argv[2]}]
for piece in model.stream(messages, temperature=0.7, max_tokens=60, seed=1):
    print(piece, end="", flush=True)
print()
