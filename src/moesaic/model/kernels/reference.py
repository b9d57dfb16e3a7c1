"""The row kernels as torch expressions: the readable reference, and what runs where nothing native is built.

Legend: R rows, T tokens, D model width, F inner width, K choices, V vocabulary, N attention problems, S positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class RowKernels:
    """What lies between the matrix products of a training step. Any device and precision; no state."""

    name = "torch"

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x / rms(x) * weight in `dtype` (Zhang & Sennrich 2019, eq. 4), and 1 / rms(x) `[..., 1]`; sums in fp32."""
        wide = x.float()
        rstd = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return (wide * rstd * weight_D).to(dtype), rstd

    def rms_norm_backward(self, x: Tensor, weight_D: Tensor, rstd: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of `x` and `weight`."""
        normed = x.float() * rstd
        dnormed = dy.float() * weight_D
        dx = rstd * (dnormed - normed * (dnormed * normed).mean(dim=-1, keepdim=True))
        return dx.to(x.dtype), (dy.float() * normed).flatten(0, -2).sum(dim=0).to(weight_D.dtype)

    def rotate(self, x_BSHC: Tensor, cos_BSC: Tensor, sin_BSC: Tensor, inverse: bool = False) -> Tensor:
        """Turn each pair (i, i + C/2) of every head by its angle (Su et al. 2021), or back."""
        first, second = x_BSHC.chunk(2, dim=-1)
        turned = torch.cat((second, -first) if inverse else (-second, first), dim=-1)
        return x_BSHC * cos_BSC.unsqueeze(2) + turned * sin_BSC.unsqueeze(2)

    def visible_softmax(self, scores_NRS: Tensor, starts_BS: Tensor, lo: int, hi: int, first: int) -> Tensor:
        """Softmax of query rows over the keys each may see, 0 elsewhere; overwrites `scores`.

        Rows are positions lo..hi, each with its query heads side by side; columns are keys from `first` on. The
        query at position p of a sequence sees keys `starts[sequence, p]` to p.
        """
        batch, keys = starts_BS.shape[0], scores_NRS.shape[2]
        key_S = torch.arange(first, first + keys, device=starts_BS.device)
        query_Q1 = torch.arange(lo, hi, device=starts_BS.device).unsqueeze(-1)
        hidden_BQS = (key_S < starts_BS[:, lo:hi].unsqueeze(-1)) | (key_S > query_Q1)
        view = scores_NRS.view(batch, -1, hi - lo, scores_NRS.shape[1] // (hi - lo), keys)
        view.masked_fill_(hidden_BQS[:, None, :, None], -torch.inf)
        return torch.softmax(scores_NRS, dim=-1)

    def softmax_backward(self, dp_NRS: Tensor, p_NRS: Tensor, delta_NR: Tensor) -> Tensor:
        """(dp - delta) * p, the gradient of the scores; overwrites `dp`."""
        return dp_NRS.sub_(delta_NR.unsqueeze(-1).to(dp_NRS.dtype)).mul_(p_NRS)

    def swiglu(self, h_R2F: Tensor, weight_R: Tensor) -> Tensor:
        """silu(gate) * up * weight (Shazeer 2020), where a row of `h` is [gate, up]: `[rows, 2 f] -> [rows, f]`."""
        gate_RF, up_RF = h_R2F.chunk(2, dim=-1)
        return F.silu(gate_RF).mul_(up_RF).mul_(weight_R.unsqueeze(-1).to(h_R2F.dtype))

    def swiglu_backward(self, h_R2F: Tensor, weight_R: Tensor, da_RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient of `swiglu`: its value once more, the gradients of `h` and (fp32) of `weight`."""
        gate_RF, up_RF = h_R2F.chunk(2, dim=-1)
        weight_R1 = weight_R.unsqueeze(-1).to(h_R2F.dtype)
        act_RF = F.silu(gate_RF)
        a_RF = act_RF * up_RF
        dweight_R = torch.sum(da_RF * a_RF, dim=-1, dtype=torch.float32)
        da_RF = da_RF * weight_R1
        dh_R2F = torch.empty_like(h_R2F)
        torch.mul(da_RF, act_RF, out=dh_R2F[:, up_RF.shape[1] :])
        dh_R2F[:, : up_RF.shape[1]] = torch.ops.aten.silu_backward(da_RF.mul_(up_RF), gate_RF)
        return a_RF.mul_(weight_R1), dh_R2F, dweight_R

    def sum_rows(self, y_RD: Tensor, place_TK: Tensor) -> Tensor:
        """Add the rows of each token, in the order of its choices: `[rows, d] -> [tokens, d]`."""
        return y_RD[place_TK].sum(dim=1)

    def cross_entropy(self, logits_TV: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of cross entropies in nats over labels that are not negative, and its gradient; overwrites `logits`."""
        label_T1 = labels_T.unsqueeze(-1)
        counted_T1, target_T1 = label_T1 >= 0, label_T1.clamp(min=0)
        p_TV = torch.softmax(logits_TV, dim=-1)
        p_target_T1 = p_TV.gather(1, target_T1)
        loss = -(p_target_T1.float().clamp(min=1e-30).log() * counted_T1).sum()
        return loss, p_TV.scatter_(1, target_T1, p_target_T1 - 1).mul_(counted_T1)
