"""Two sources, 2 epochs of text and 4 of code: how often each document is seen before the mixture ends.

python examples/epoch_caps.py
"""

from collections import Counter

from moesaic.data.mixture import MixedSource, Mixture, document

text = MixedSource("text", documents=900, input_tokens=450_000, epochs=2)
code = MixedSource("code", documents=200, input_tokens=100_000, epochs=4)
mixture = Mixture([text, code], window_tokens=32_768)
for source in (text, code):
    seen = Counter(
        document(1, source, ordinal)  # which document this is, in the order of seed 1
        for window in range(mixture.windows)
        for ordinal in mixture.window(window)[source.name]
    )
    times = sorted(set(seen.values()))
    print(f"{source.name}: {len(seen)} of {source.documents} documents, each seen {times} times")
