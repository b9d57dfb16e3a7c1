"""Parts of a device's memory and of a step in words: what each is called and what it comes from."""

MEMORY_WORDS = {
    "weights": "weights, 16 bit",
    "gradients": "gradients",
    "optimizer": "fp32 weights and Adam's moments",
    "gathered": "layers that ZeRO-3 holds whole",
    "activations": "activations of micro-batches in flight",
    "logits": "logits of one micro-batch",
    "reserve": "context, buffers, fragmentation",
}
HELD = {
    "weights": "2 bytes x parameters; ZeRO-3: / replicas",
    "gradients": "2 or 4 bytes x parameters; ZeRO-2: / replicas",
    "optimizer": "12 bytes x parameters (fp32 master, two moments); ZeRO-1: / replicas",
    "gathered": "ZeRO-3: two whole layers",
    "activations": "micro-batches in flight x layers x bytes kept of one (Korthikanti et al. 2022)",
    "logits": "6 bytes x tokens x vocabulary / TP, on the last stage",
    "reserve": "1.5 GB of context and buffers + 3 % fragmentation",
}
SPENT = {
    "gemm": "FLOP / reachable peak + bytes / reachable bandwidth",
    "attention": "scores and their products, at their own reachable peak",
    "elementwise": "norms, residuals, activations: bytes / reachable bandwidth",
    "recompute": "the forward pass again, under full recomputation",
    "tensor_parallel": "all-reduces: 2 (t - 1) / t x bytes / rate + latency, the exposed share",
    "expert_parallel": "all-to-alls there and back, the exposed share",
    "context_parallel": "keys and values round the ring, what attention does not hide",
    "stalls": "host time that the device waits for",
    "pipeline": "activations and gradients between stages, the exposed share",
    "bubble": "(p - 1) / v micro-batches of the mean stage",
    "data_parallel": "gradients scattered and parameters gathered, the exposed share",
    "optimizer": "bytes of state / reachable bandwidth + what a step needs besides",
    "pace": "what the stack needs beyond the model",
}
