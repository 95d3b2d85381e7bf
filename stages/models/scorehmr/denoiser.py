"""ScoreHMR's denoiser: predicts the noise in a pose vector, given its time index and a condition vector.

Source: Stathopoulos et al. 2024 (ScoreHMR), section 3.2 and the released network. A stack is a residual MLP whose
blocks are scaled and shifted by the time and see the condition beside the pose. With shape, a second small stack treats
the ten normalised betas; the two do not see each other.

Training and checks use `Denoiser.forward`. The loop uses `Denoiser.condition(...)`: the condition does not change
between the 500 calls of a run, so its part of every first layer is computed once (11.3 M multiplications a call become
0.93 M), layer norms are folded into the matrices, and the time branch is evaluated once for each index on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.scorehmr.schedule import Schedule

Call = Callable[[Tensor, int], Tensor]


def sinusoid(t: Tensor, size: int) -> Tensor:
    """Time features (n, size) of the indices t (n,): size/2 sines, then as many cosines."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
    angle = t[:, None].float() * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class DenoiserLayers(nn.Module):
    """concat [h, c] -> norm -> linear -> GELU -> norm -> linear -> GELU."""

    def __init__(self, size: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(size + condition)
        self.linear_layer1 = nn.Linear(size + condition, hidden)
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.linear_layer2 = nn.Linear(hidden, size)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        out = F.gelu(self.linear_layer1(self.layer_norm1(torch.cat([h, c], dim=-1))))
        return F.gelu(self.linear_layer2(self.layer_norm2(out)))


class DenoiserBlock(nn.Module):
    """Scale and shift by time; the residual is what comes after that."""

    def __init__(self, size: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * size, 2 * size))
        self.block = DenoiserLayers(size, condition, hidden)

    def forward(self, h: Tensor, time: Tensor, which: Tensor, c: Tensor) -> Tensor:
        """h (n, size), time features of the distinct indices (m, 4 size), which (n,) of them a row has, c (n, C)."""
        scale, shift = self.mlp(time)[which].chunk(2, dim=-1)
        h = h * (scale + 1) + shift
        return h + self.block(h, c)


class _Identity(nn.Identity):
    """Slot 0 of the time branch: the published numbering counts the sinusoid as a layer."""


def _time_mlp(size: int) -> nn.Sequential:
    return nn.Sequential(_Identity(), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, 4 * size))


class Denoiser(nn.Module):
    """Predicted noise (n, 144 [+ 10]) from x (n, the same), t (n,) int and the condition (n, 3072 [+ 1536]).

    Parameter names are those of the published file under `ema_model.model.`.
    """

    def __init__(
        self, condition: int = 3072, betas_condition: int = 0, *, size: int = 144, hidden: int = 1024, blocks: int = 3
    ) -> None:
        super().__init__()
        self.size, self.condition_size, self.betas_condition = size, condition, betas_condition
        self.time_mlp = _time_mlp(size)
        self.init_mlp = nn.Linear(size, size)
        self.blocks = nn.ModuleList(DenoiserBlock(size, condition, hidden) for _ in range(blocks))
        self.final_mlp = nn.Linear(size, size)
        if betas_condition:
            self.time_mlp_betas = _time_mlp(10)
            self.init_mlp_betas = nn.Linear(10, 10)
            self.blocks_betas = nn.ModuleList(DenoiserBlock(10, betas_condition, hidden) for _ in range(2))
            self.final_mlp_betas = nn.Linear(10, 10)

    @property
    def with_betas(self) -> bool:
        return bool(self.betas_condition)

    def stacks(self) -> list[tuple[slice, slice, nn.Module, nn.Linear, nn.ModuleList, nn.Linear]]:
        """(slice of x, slice of the condition, time branch, first layer, blocks, last layer) of each stack."""
        stacks: list = [
            (
                slice(0, self.size),
                slice(0, self.condition_size),
                self.time_mlp,
                self.init_mlp,
                self.blocks,
                self.final_mlp,
            )
        ]
        if self.with_betas:
            part = slice(-self.betas_condition, None)
            x = slice(self.size, None)
            stacks.append((x, part, self.time_mlp_betas, self.init_mlp_betas, self.blocks_betas, self.final_mlp_betas))
        return stacks

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        out = []
        distinct, which = t.unique(return_inverse=True)  # the time branch is half of the work, and t has few values
        for part, condition_part, time_mlp, first, blocks, last in self.stacks():
            time = time_mlp(sinusoid(distinct, first.in_features))
            h, c = first(x[:, part]), condition[:, condition_part]
            for block in blocks:
                h = block(h, time, which, c)
            out.append(last(h))
        return out[0] if len(out) == 1 else torch.cat(out, dim=-1)

    def condition(self, condition: Tensor, times: Sequence[int]) -> Call:
        """A fast `eps = f(x (n, D), t)` for these rows and indices; equal to forward within 1e-5, without gradient."""
        with torch.no_grad():
            stacks = [
                (part, _FastStack(time_mlp, first, blocks, last, condition[:, condition_part], times))
                for part, condition_part, time_mlp, first, blocks, last in self.stacks()
            ]
        if len(stacks) == 1:
            return stacks[0][1]
        return lambda x, t: torch.cat([stack(x[:, part].contiguous(), t) for part, stack in stacks], dim=-1)


def noise_loss(denoiser: nn.Module, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
    """Squared error (n, D) of the predicted noise: ScoreHMR's training loss, before averaging.

    x0, noise (n, D), t (n,), condition (n, C). The pose's and the shape's part are averaged on their own, then added.
    """
    return (denoiser(Schedule.cosine().add_noise(x0, noise, t), t, condition) - noise).square()


class _FastBlock:
    """One block with its condition folded in.

    With z = [h, c], mean m and deviation s of z, A and B the pose and condition columns of W1 * gamma1:
    W1 norm(z) = (A (h - m) + B (c - mc) + (mc - m) B 1) / s + (W1 beta1 + b1), where mc is the mean of c. With mh the
    mean of h and p its share of z, m = mh + (1 - p) (mc - mh), so the first and the last term are
    A (h - mh) + (mc - mh) (p B 1 - (1 - p) A 1). The second norm is folded in the same way.
    """

    def __init__(self, block: DenoiserBlock, c: Tensor, times: dict[int, Tensor]) -> None:
        layers, size = block.block, block.block.linear_layer2.out_features
        weight = layers.linear_layer1.weight * layers.layer_norm1.weight
        self.A = weight[:, :size].t().contiguous()
        B = weight[:, size:]
        self.v = F.linear(layers.layer_norm1.bias, layers.linear_layer1.weight, layers.linear_layer1.bias)
        mc = c.sum(1, keepdim=True) / max(c.shape[1], 1)  # an unconditional prior has no c at all
        centred = c - mc
        self.C = centred @ B.t()
        self.mc = mc
        self.total = size + c.shape[1]
        self.share = size / self.total
        self.by_gap = self.share * B.sum(1) - (1 - self.share) * self.A.sum(0)
        self.ss = centred.square().sum(1, keepdim=True) / self.total + layers.layer_norm1.eps
        self.W2 = (layers.linear_layer2.weight * layers.layer_norm2.weight).t().contiguous()
        self.v2 = F.linear(layers.layer_norm2.bias, layers.linear_layer2.weight, layers.linear_layer2.bias)
        self.hidden, self.eps, self.by_mean = self.W2.shape[0], layers.layer_norm2.eps, self.W2.sum(0)
        self.modulation = {
            t: tuple(m.contiguous() for m in block.mlp(time).chunk(2, dim=-1)) for t, time in times.items()
        }
        self.modulation = {t: (scale + 1, shift) for t, (scale, shift) in self.modulation.items()}

    def __call__(self, h: Tensor, t: int) -> Tensor:
        scale, shift = self.modulation[t]
        h = torch.addcmul(shift, h, scale)
        mh = h.mean(1, keepdim=True)
        zero = h - mh
        gap = self.mc - mh
        # var(z) = (ss_h + ss_c) / total + share (1 - share) (mc - mh)^2
        var = torch.addcmul(self.ss, gap, gap, value=self.share * (1 - self.share))
        var = torch.add(var, torch.linalg.vecdot(zero, zero).unsqueeze(1), alpha=1 / self.total)
        out = torch.addmm(self.C, zero, self.A).addcmul_(gap, self.by_gap)
        out = F.gelu(torch.addcmul(self.v, out, torch.rsqrt(var)))
        mean = out.mean(1, keepdim=True)
        var = torch.linalg.vecdot(out, out).unsqueeze(1) / self.hidden - mean.square() + self.eps
        change = (out @ self.W2).addcmul_(mean, self.by_mean, value=-1)
        return h + F.gelu(torch.addcmul(self.v2, change, torch.rsqrt(var)))


class _FastStack:
    def __init__(
        self,
        time_mlp: nn.Module,
        first: nn.Linear,
        blocks: nn.ModuleList,
        last: nn.Linear,
        condition: Tensor,
        times: Sequence[int],
    ) -> None:
        indices = sorted(set(times))
        t = torch.tensor(indices, device=condition.device)
        features = time_mlp(sinusoid(t, first.in_features))
        table = {index: features[i : i + 1] for i, index in enumerate(indices)}
        self.first, self.last = (first.weight.t().contiguous(), first.bias), (last.weight.t().contiguous(), last.bias)
        self.blocks = [_FastBlock(block, condition, table) for block in blocks]  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, x: Tensor, t: int) -> Tensor:
        h = torch.addmm(self.first[1], x, self.first[0])
        for block in self.blocks:
            h = block(h, t)
        return torch.addmm(self.last[1], h, self.last[0])
