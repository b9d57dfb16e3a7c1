"""What such a model costs, where it fits, how long it runs, and whether a claim can be true.

NumPy and the recipe only: no torch, no network.
"""
