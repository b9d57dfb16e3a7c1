"""What the router does with two tokens: softmax, the two largest, renormalised.

python examples/route_tokens.py
"""

import torch

from moesaic.model import Router

logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.5, 3.0, 2.0]])  # [tokens, experts]
router = Router(d_model=4, n_experts=4, top_k=2)
router.weight.data = torch.eye(4)  # so that the input is the logits
routing = router(logits.unsqueeze(0))
for token, row in enumerate(logits):
    shares = ", ".join(f"{p:.3f}" for p in row.softmax(0).tolist())
    print(f"token {token}: softmax [{shares}]")
    for expert, weight in zip(routing.experts_TK[token].tolist(), routing.weights_TK[token].tolist(), strict=True):
        print(f"  expert {expert} with weight {weight:.3f}")
