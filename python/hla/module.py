"""Hadamard linear attention with its feature maps as a PyTorch module."""

from operator import index
from typing import Any, Dict, Optional, Sequence

import torch
from torch import nn

from ._functions import feature_map, hadamard_attention
from ._library import MAX_FACTORS, MAX_RANK
from ._library import activation as check_activation


class _Weights(nn.Module):
    """weight [H, R, D] and bias [H, R], or the same of a hidden layer, R = D."""

    def __init__(self, heads: int, rank: int, dim: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, rank, dim))
        self.bias = nn.Parameter(torch.empty(heads, rank)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class FeatureMap(_Weights):
    """The map of one factor, for queries or keys: hla.feature_map with its weights."""

    def __init__(
        self,
        heads: int,
        dim: int,
        rank: int,
        *,
        is_query: bool,
        activation: str = "relu",
        activation_floor: float = 1e-3,
        hidden: bool = False,
        bias: bool = True,
    ):
        super().__init__(heads, rank, dim, bias)
        self.activation, self.activation_floor, self.is_query = activation, activation_floor, is_query
        self.hidden = _Weights(heads, dim, dim, True) if hidden else None

    def forward(self, x: torch.Tensor, rope: Optional[torch.Tensor] = None) -> torch.Tensor:
        """x [B, T, H, D] -> [B, T, H, R]; rope [T, D / 2, 2] turns x first."""
        hidden = (None, None) if self.hidden is None else (self.hidden.weight, self.hidden.bias)
        return feature_map(
            x, self.weight, self.bias, *hidden, activation=self.activation, floor=self.activation_floor,
            is_query=self.is_query, rope=rope,
        )  # fmt: skip


class HadamardAttention(nn.Module):
    """Hadamard linear attention (arXiv 2602.12128) over queries and keys, with learned feature maps: a map for queries
    and one for keys of each factor, every head with its own weights.

    Args:
        heads: H, of queries and keys.
        dim: D, the width of a head.
        ranks: R_p of each factor, 1 to 4 numbers from 1 to 256. The state has R_1 ... R_P features.
        activation, activation_floor: of the maps, see hla.feature_map.
        normalised, epsilon, scale: see hla.hadamard_attention.
        hidden, bias: the maps have a hidden layer; a bias.
        rope: "before": queries and keys are turned before the maps see them; "after": the maps see them unturned, and
            positions do not enter.

    These are the keys of a block in hla/config.json, and the names of the parameters, query_map.p.weight and so on, are
    those of hla/model.safetensors (video/weights/README.md); hla.diffusers saves and loads both.
    """

    def __init__(
        self,
        heads: int,
        dim: int,
        ranks: Sequence[int],
        *,
        activation: str = "relu",
        activation_floor: float = 1e-3,
        normalised: bool = True,
        epsilon: float = 1e-6,
        scale: float = 1.0,
        hidden: bool = False,
        bias: bool = True,
        rope: str = "before",
    ):
        super().__init__()
        ranks = [index(rank) for rank in ranks]
        if not 1 <= len(ranks) <= MAX_FACTORS or not all(1 <= rank <= MAX_RANK for rank in ranks):
            raise ValueError(f"ranks are {ranks}, wanted 1 to {MAX_FACTORS} numbers from 1 to {MAX_RANK}")
        if rope not in ("before", "after"):
            raise ValueError(f"rope is {rope!r}, wanted 'before' or 'after'")
        check_activation(activation)
        maps = dict(activation=activation, activation_floor=activation_floor, hidden=hidden, bias=bias)
        self.query_map = nn.ModuleList(FeatureMap(heads, dim, rank, is_query=True, **maps) for rank in ranks)
        self.key_map = nn.ModuleList(FeatureMap(heads, dim, rank, is_query=False, **maps) for rank in ranks)
        self.heads, self.dim, self.rope = heads, dim, rope
        self._config = dict(ranks=ranks, normalised=normalised, epsilon=epsilon, scale=scale, rope=rope, **maps)

    def block_config(self) -> Dict[str, Any]:
        """The arguments after dim, as a block of hla/config.json has them."""
        return dict(self._config)

    def extra_repr(self) -> str:
        return ", ".join([f"heads={self.heads}, dim={self.dim}", *(f"{k}={v!r}" for k, v in self._config.items())])

    def features(self, q: torch.Tensor, k: torch.Tensor, rope: Optional[torch.Tensor] = None):
        """The two lists of features that hla.hadamard_attention takes."""
        if self.rope == "after":
            rope = None
        return [feature_map(q, rope) for feature_map in self.query_map], [
            feature_map(k, rope) for feature_map in self.key_map
        ]

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rope: Optional[torch.Tensor] = None, **options: Any
    ) -> Any:
        """q [B, Tq, H, D], k [B, Tk, H, D], v [B, Tk, H, V] -> [B, Tq, H, V].

        rope: float32 [T, D / 2, 2], a cosine and a sine for each token and pair; q and k then are of T tokens. options:
        those of hla.hadamard_attention that are not the module's, e.g. causal, key_lengths, return_state.
        """
        config = self._config
        return hadamard_attention(
            *self.features(q, k, rope), v, normalised=config["normalised"], epsilon=config["epsilon"],
            scale=config["scale"], **options,
        )  # fmt: skip
