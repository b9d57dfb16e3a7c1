"""The parity matrix: layouts on 2, 4 and 8 ranks against one process, and docs/layouts.md, where they stand.

python scripts/parity_matrix.py    measures (minutes) and writes the page; fails when a layout differs

tests/parity/test_layouts.py holds the same layouts in CI.
"""

import sys
from functools import cache
from pathlib import Path

import torch

from moesaic.parallel.launch import run_ranks
from moesaic.recipe import Layout
from moesaic.recipe.layout_text import parse_layout
from moesaic.train import verify

PAGE = Path(__file__).parents[1] / "docs" / "layouts.md"
LIMIT_S = 400.0

MATRIX = (
    # 2 ranks
    "dp=2,zero=0",
    "dp=2,zero=1",
    "dp=2,zero=3",
    "dp=2,zero=0,reduce=bf16",
    "dp=2,zero=1,reduce=bf16",
    "dp=2,ep=2,zero=0",
    "dp=2,ep=2,zero=3,recompute=full",
    "cp=2",
    "cp=2,ep=2,zero=3,recompute=selective",
    "tp=2",
    "tp=2,etp=2",
    "tp=2,ep=2",
    "pp=2",
    "pp=2,schedule=interleaved",
    "pp=2,schedule=zero_bubble",
    # 4 ranks
    "dp=4,ep=4",
    "dp=4,ep=2,zero=3",
    "dp=2,cp=2,ep=2,zero=3",
    "cp=4",
    "dp=2,tp=2,ep=4",
    "dp=2,tp=2,ep=2,etp=2,zero=3",
    "cp=2,tp=2,ep=2,recompute=selective",
    "tp=4",
    "pp=4",
    "pp=4,schedule=interleaved",
    "pp=4,schedule=zero_bubble",
    "pp=2,tp=2,ep=2,recompute=full",
    "pp=2,tp=2,etp=2,schedule=interleaved",
    "pp=2,dp=2,ep=2,zero=3",
    "pp=2,dp=2,ep=2,schedule=zero_bubble,recompute=selective",
    "pp=2,cp=2,schedule=zero_bubble,zero=0",
    # 8 ranks
    "dp=8,ep=8",
    "pp=2,dp=2,tp=2,ep=4,zero=3,recompute=full",
    "pp=2,cp=2,tp=2,ep=2,schedule=interleaved",
    "pp=4,dp=2,ep=2,schedule=zero_bubble",
    "dp=2,cp=2,tp=2,ep=8",
)


@cache
def reference(case: verify.Case) -> verify.Reference:
    """What one process computes, once."""
    return verify.reference(case)


def measure(cases: dict[str, tuple[verify.Case, Layout]]) -> dict[str, dict[str, torch.Tensor]]:
    """What each case computes in its layout, all on one set of ranks for each number of them."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for n in sorted({layout.world for _, layout in cases.values()}):
        mine = {name: pair for name, pair in cases.items() if pair[1].world == n}
        asked = [(case, layout, reference(case).seed) for case, layout in mine.values()]
        first, *_ = run_ranks(verify.traces, n, asked, limit_s=LIMIT_S)
        found |= dict(zip(mine, first, strict=True))
    return found


def matrix_cases() -> dict[str, tuple[verify.Case, Layout]]:
    """The layouts of the matrix on the model that suits them."""
    layouts = {text: parse_layout(text) for text in MATRIX}
    return {text: (verify.case_for(layout), layout) for text, layout in layouts.items()}


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    cases = matrix_cases()
    found = measure(cases)
    verdicts = {t: verify.compare(layout, reference(case).values, found[t]) for t, (case, layout) in cases.items()}
    rows = [
        f"| `{text}` | {v.layout.world} | " + " | ".join(f"{v.largest[kind]:.1e}" for kind in verify.KINDS) + " |"
        for text, v in verdicts.items()
    ]
    case, _ = cases[MATRIX[0]]
    model = case.model
    PAGE.write_text(
        f"""# Layouts against one process

<!-- written by `python scripts/parity_matrix.py` -->

Largest difference of any value between a layout and one process, relative to the largest value of its tensor (to 1
where that is smaller): loss of the next token, balance and z loss; every gradient; the norm of all of them; weights
after {verify.STEPS} steps of AdamW (lr {verify.LR:g}, eps {verify.EPS:g}, gradients clipped). At most
{verify.TOLERANCE:g} passes, {verify.TOLERANCE_BF16:g} where gradients are summed in bf16.

The model has {model.n_layers} layers (as many as the pipeline has pieces, if more), multi-query attention with
{model.n_heads} heads, {model.n_experts} experts of which {model.top_k} are chosen, a tied embedding. It reads
{case.sequences} sequences of {case.seq_len} tokens, packed and partly padded, in micro-batches of {case.micro_batch}.
No token's choice of experts is closer than {verify.GAP:g} in its logits, or a rounding error could send it elsewhere.

Measured in fp32 on CPUs over gloo, one thread a rank, with torch {torch.__version__}. A GPU sums in another order.

| layout | ranks | {" | ".join(verify.KINDS)} |
| --- | ---: | ---: | ---: | ---: | ---: |
""" + "\n".join(rows) + """

[`moesaic verify`](verify.md) does the same for a layout of yours. CI repeats this table and further models: split and
copied key/value heads, untied heads, biases, dense layers, sliding windows, experts without tokens, frozen weights.
""",
        encoding="utf-8",
    )  # fmt: skip
    if wrong := [f"{text}: {v.first}" for text, v in verdicts.items() if not v.equal]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
