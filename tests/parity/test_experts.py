"""Four ways to compute a mixture of experts are one: expert by expert, sorted rows (on a CPU), grouped products (on a
GPU), and every expert on every token.

Tolerance: with operands of unit size, sums of up to 72 products in fp32 differ by their order, by less than 1e-5.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.model import Routing
from moesaic.model import experts as experts_module
from moesaic.model.experts import ROW_MULTIPLE, Experts, experts_grouped, experts_reference
from tiny import model

FP32 = {"atol": 1e-5, "rtol": 1e-5}
# bf16 keeps 8 bits: each rounding on the way (weights, input, products, activation, sum) is up to 2^-9, and
# they add up like independent errors. Of the norm of a whole tensor.
BF16 = 2**-7
NAMES = ("output", "x", "routing weights", "w_in", "w_out")


def experts_dense(x_TD: Tensor, routing: Routing, w_in_E2FD: Tensor, w_out_EDF: Tensor) -> Tensor:
    """Every expert on every token; a routing matrix `[tokens, experts]` picks and weighs what counts."""
    one_hot_TKE = F.one_hot(routing.experts_TK, w_in_E2FD.shape[0]).to(x_TD.dtype)
    share_TE = torch.einsum("tk,tke->te", routing.weights_TK.to(x_TD.dtype), one_hot_TKE)
    gate_up = torch.einsum("td,ecfd->tecf", x_TD, w_in_E2FD)
    hidden_TEF = F.silu(gate_up[:, :, 0]) * gate_up[:, :, 1]
    return torch.einsum("te,tef,edf->td", share_TE, hidden_TEF, w_out_EDF)


def experts_fast(x_TD: Tensor, routing: Routing, w_in_E2FD: Tensor, w_out_EDF: Tensor) -> Tensor:
    """What the model runs."""
    n_experts, _, d_ff, d_model = w_in_E2FD.shape
    with torch.device("meta"):
        module = Experts(d_model, d_ff, n_experts)
    weights = {"w_in": w_in_E2FD, "w_out": w_out_EDF}
    return torch.func.functional_call(module, weights, (x_TD, routing))


def outputs_and_gradients(
    function: object, operands: list[Tensor], experts_TK: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The output and the gradients of x, routing weights, w_in and w_out under a fixed random pull."""
    x_TD, weights_TK, w_in, w_out = (t.detach().clone().requires_grad_() for t in operands)
    out_TD = function(x_TD.to(dtype), Routing(experts_TK, weights_TK, None), w_in, w_out)  # type: ignore[operator]
    pull_TD = torch.randn(out_TD.shape, generator=torch.Generator().manual_seed(9))
    grads = torch.autograd.grad((out_TD.float() * pull_TD).sum(), (x_TD, weights_TK, w_in, w_out))
    return [out_TD.detach().float(), *grads]


def problem(tokens: int, n_experts: int, top_k: int, d_model: int, d_ff: int, seed: int) -> list[Tensor]:
    """Operands of about unit size, then the choices `[tokens, top_k]`, distinct within a token."""
    g = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(tokens, d_model, generator=g)
    w_in = torch.randn(n_experts, 2, d_ff, d_model, generator=g) / d_model**0.5
    w_out = torch.randn(n_experts, d_model, d_ff, generator=g) / d_ff**0.5
    weights_TK = torch.rand(tokens, top_k, generator=g).add_(0.1)
    weights_TK /= weights_TK.sum(dim=1, keepdim=True)
    return [x_TD, weights_TK, w_in, w_out, torch.rand(tokens, n_experts, generator=g).topk(top_k).indices]


def assert_all_agree(operands: list[Tensor], experts_TK: Tensor) -> None:
    loop = outputs_and_gradients(experts_reference, operands, experts_TK)
    for other in (experts_fast, experts_grouped, experts_dense):
        for name, ours, theirs in zip(NAMES, outputs_and_gradients(other, operands, experts_TK), loop, strict=True):
            torch.testing.assert_close(ours, theirs, **FP32, msg=lambda m, n=name, o=other: f"{o.__name__}, {n}: {m}")


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    n_experts = draw(st.integers(1, 9))
    widths = st.integers(1, 9).map(lambda n: 8 * n)
    return draw(st.integers(1, 70)), n_experts, draw(st.integers(1, n_experts)), draw(widths), draw(widths)


@settings(max_examples=60)
@given(shapes(), st.integers(0, 2**31))
@example((1, 1, 1, 8, 8), 0)
@example((70, 9, 9, 72, 72), 0)
def test_loop_fast_and_dense_agree(shape: tuple[int, int, int, int, int], seed: int) -> None:
    *operands, experts_TK = problem(*shape, seed)
    assert_all_agree(operands, experts_TK)


@pytest.mark.parametrize("rows", [1, ROW_MULTIPLE - 1, ROW_MULTIPLE, ROW_MULTIPLE + 1, 2 * ROW_MULTIPLE])
def test_counts_around_the_padding_of_rows(rows: int) -> None:
    """Expert 0 gets `rows` tokens, expert 2 the others, expert 1 none."""
    *operands, _ = problem(3 * ROW_MULTIPLE, 3, 1, 16, 24, seed=rows)
    assert_all_agree(operands, torch.tensor([[0]] * rows + [[2]] * (3 * ROW_MULTIPLE - rows)))


@pytest.mark.parametrize("n_experts", [1, 5])
def test_all_tokens_to_one_expert(n_experts: int) -> None:
    *operands, _ = problem(37, n_experts, 1, 16, 24, seed=0)
    assert_all_agree(operands, torch.full((37, 1), n_experts - 1))


def test_an_expert_without_tokens_has_a_gradient_and_it_is_zero() -> None:
    *operands, experts_TK = problem(40, 6, 2, 16, 24, seed=0)
    experts_TK = torch.tensor([0, 2, 3, 5])[experts_TK % 4]
    experts_TK[:, 1] = torch.where(experts_TK[:, 1] == experts_TK[:, 0], (experts_TK[:, 0] + 3) % 6, experts_TK[:, 1])
    experts_TK[experts_TK == 1] = 0  # nobody visits 1 and 4
    experts_TK[experts_TK == 4] = 5
    assert_all_agree(operands, experts_TK)
    *_, d_in, d_out = outputs_and_gradients(experts_fast, operands, experts_TK)
    for e in range(6):
        idle = e in (1, 4)
        assert (d_in[e].count_nonzero() == 0) == idle, e
        assert (d_out[e].count_nonzero() == 0) == idle, e


def test_an_optimizer_sees_the_gradient_of_an_idle_expert() -> None:
    """A missing gradient would leave the expert out of weight decay and out of a reduction over ranks."""
    built = model()
    experts: Experts = built.layers[0].experts
    routing = Routing(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), None)
    experts(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), routing).sum().backward()
    for weight in (experts.w_in, experts.w_out):
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape
        assert weight.grad[0].count_nonzero() > 0
        assert weight.grad[1:].count_nonzero() == 0


@pytest.mark.parametrize("seed", range(3))
def test_bf16_is_near_fp32(seed: int) -> None:
    *operands, experts_TK = problem(64, 4, 2, 32, 32, seed)
    exact = outputs_and_gradients(experts_dense, operands, experts_TK)
    fast = outputs_and_gradients(experts_fast, operands, experts_TK, torch.bfloat16)
    for name, ours, theirs in zip(NAMES, fast, exact, strict=True):
        assert ours.dtype == torch.float32, name  # gradients arrive in the weights' precision
        error = float((ours - theirs).norm() / theirs.norm())
        assert 0 < error <= BF16, (name, error)


def test_the_whole_model_with_the_reference_swapped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block and transformer, with the gradients of every weight: also the router's, through the routing weights."""
    tokens_BS = torch.randint(512, (3, 33), generator=torch.Generator().manual_seed(0))

    def run() -> dict[str, Tensor]:
        built = model(init_std=0.1)
        logits_BSV = built(tokens_BS)
        loss = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())
        loss.backward()
        return {"logits": logits_BSV.detach()} | {n: p.grad for n, p in built.named_parameters()}  # type: ignore[dict-item]

    fast = run()
    calls = []

    def forward(self: Experts, x_TD: Tensor, routing: Routing) -> Tensor:
        calls.append(self)
        return experts_reference(x_TD, routing, self.w_in, self.w_out)

    monkeypatch.setattr(experts_module.Experts, "forward", forward)
    reference = run()
    assert len(calls) == 2
    for name, tensor in fast.items():
        torch.testing.assert_close(tensor, reference[name], **FP32, msg=lambda m, n=name: f"{n}: {m}")
        assert tensor.count_nonzero() > 0, name
