"""``numerics: wan``: the rounding order of the original Wan code, put into a stock diffusers network.

In fp32 the float64 timestep features and rotary angles are enough to agree with it bit for bit. In bf16 three further
details count: the RMS norm is rounded before its weight is applied, layer norms and modulation round to bf16 at every
operation, and so does the residual stream. Stock diffusers computes norms and modulation in fp32. Source: the released
code of Wan2.1 and Self-Forcing (``WanRMSNorm``, ``WanLayerNorm``, ``CausalWanAttentionBlock``, ``CausalHead``).
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from vidalign.students.video.blocks import BlockPlan, CausalBlock, TextKeys


class OriginalBlock(CausalBlock):
    """A block of the network whose norms, modulation and residuals stay in the dtype of its input."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | TextKeys, temb: Tensor, rotary_emb: BlockPlan
    ) -> Tensor:
        """Hidden states ``[N, tokens, D]`` at modulation ``[N, 6, D]``, behind text ``[N, L, D]``."""
        x, like = hidden_states, hidden_states
        shift, scale, gate, c_shift, c_scale, c_gate = (self.scale_shift_table + temb).chunk(6, dim=1)
        x = (x + self.attn1(_norm(self.norm1, x) * (1 + scale) + shift, None, None, rotary_emb) * gate).type_as(like)
        normed = _norm(self.norm2, x) if isinstance(self.norm2, nn.LayerNorm) else x
        x = x + self.attn2(normed, encoder_hidden_states, None, None)
        out: Tensor = (x + self.ffn(_norm(self.norm3, x) * (1 + c_scale) + c_shift) * c_gate).type_as(like)
        return out


class OriginalOutNorm(nn.LayerNorm):
    """The norm before the head: the stock network hands it fp32, it rounds to the dtype of the head."""

    head: tuple[nn.Module]
    """In a tuple, so that it is no submodule."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Like `inputs`, in the dtype of the head's weight."""
        weight = self.head[0].weight
        assert isinstance(weight, Tensor), "the head is a linear layer"
        return _norm(self, inputs.to(weight.dtype))


class Sinusoid64(nn.Module):
    """Timestep features in float64, as the original Wan computes them; `[n] -> [n, channels]` float64."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, timestep: Tensor) -> Tensor:
        """Cosines, then sines; the network rounds them to its own dtype."""
        half = self.channels // 2
        powers = -torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angles = torch.outer(timestep.double(), torch.pow(10000, powers))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def round_as_original(transformer: WanTransformer3DModel) -> None:
    """Change a stock network in place; its parameters stay as they are."""
    transformer.condition_embedder.timesteps_proj = Sinusoid64(transformer.config.freq_dim)
    for block in transformer.blocks:
        block.__class__ = OriginalBlock
    transformer.norm_out.__class__ = OriginalOutNorm
    transformer.norm_out.head = (transformer.proj_out,)


def original_rms(norm: nn.Module, x: Tensor) -> Tensor:
    """RMS norm in fp32, rounded to the dtype of `x`, then times the weight in that dtype."""
    assert isinstance(norm, nn.RMSNorm) and norm.eps is not None, "queries and keys are normed so"
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return wide.type_as(x) * norm.weight


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm with a result in the dtype of `x`."""
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
