"""Hadamard linear attention in diffusers' WanTransformer3DModel: another processor for the self-attention of each block
that is converted.

    blocks = [{"ranks": [16, 16]}, None, ...]                   # a block's attention: Hadamard, or None for softmax
    hla.diffusers.set_attention(pipe.transformer, blocks)       # new maps, to be trained
    hla.diffusers.save_adapter(pipe.transformer, "model/hla")   # hla generate --model model
    hla.diffusers.load_adapter(pipe.transformer, "model/hla")
"""

import os
from typing import Dict, Iterable, List, Optional, Sequence

import torch
from torch import nn

from . import adapter
from .adapter import Block
from .module import HadamardAttention


class HadamardProcessor(nn.Module):
    """What WanAttnProcessor does for self-attention, with Hadamard linear attention in the place of softmax."""

    def __init__(self, attention: HadamardAttention):
        super().__init__()
        self.attention = attention

    def forward(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        rotary_emb=None,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None:
            raise ValueError("encoder_hidden_states is given: HadamardProcessor serves self-attention only")
        if attention_mask is not None:
            raise ValueError("attention_mask is given: Hadamard attention of a block takes none")
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        rope = None if rotary_emb is None else rope_table(*rotary_emb)
        out = self.attention(q, k, v, rope=rope).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out


def rope_table(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """WanRotaryPosEmbed's [1, T, 1, D], each number twice, as libhla's table [T, D / 2, 2]."""
    return torch.stack([cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]], dim=-1).float()


def attentions(transformer: nn.Module) -> List[Optional[HadamardAttention]]:
    """Of each block the Hadamard attention, or None where it is another."""
    processors = [block.attn1.processor for block in transformer.blocks]
    return [p.attention if isinstance(p, HadamardProcessor) else None for p in processors]


def set_attention(transformer: nn.Module, blocks: Sequence[Block]) -> List[Optional[HadamardAttention]]:
    """Gives each block its self-attention. blocks: for each block the arguments of hla.HadamardAttention from ranks on,
    as a dict, for maps with random weights in float32 on the block's device; or None for softmax."""
    if len(blocks) != len(transformer.blocks):
        raise ValueError(f"blocks has {len(blocks)} entries, wanted {len(transformer.blocks)}: one for each block")
    made = []
    for block, arguments in zip(transformer.blocks, blocks):
        attn = block.attn1
        attention = None
        if arguments is not None:
            attention = HadamardAttention(attn.heads, attn.inner_dim // attn.heads, **arguments)
            attention.to(attn.to_q.weight.device)
        made.append(attention)
    for block, attention in zip(transformer.blocks, made):
        softmax = block.attn1._default_processor_cls
        block.attn1.set_processor(softmax() if attention is None else HadamardProcessor(attention))
    return made


def map_tensors(transformer: nn.Module) -> Dict[str, nn.Parameter]:
    """The parameters of all feature maps, by their names in hla/model.safetensors."""
    return {
        f"blocks.{i}.attn1.{name}": parameter
        for i, attention in enumerate(attentions(transformer))
        if attention is not None
        for name, parameter in attention.named_parameters()
    }


def _own_tensors(transformer: nn.Module) -> Dict[str, nn.Parameter]:
    return {name: p for name, p in transformer.named_parameters() if ".attn1.processor." not in name}


def save_adapter(
    transformer: nn.Module,
    folder: os.PathLike,
    *,
    with_weights: Iterable[str] = (),
    dtype: Optional[torch.dtype] = None,
) -> None:
    """Writes config.json and model.safetensors.

    with_weights: names of such of the transformer's own parameters as were trained too and shall take the place of the
    model's. dtype: of the tensors written, where it is not the parameters' own.
    """
    own = _own_tensors(transformer)
    unknown = [name for name in with_weights if name not in own]
    if unknown:
        raise ValueError(f"with_weights has {', '.join(unknown)}, which the transformer does not have")
    tensors = {**map_tensors(transformer), **{name: own[name] for name in with_weights}}
    blocks = [None if attention is None else attention.block_config() for attention in attentions(transformer)]
    adapter.write(folder, blocks, {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()})


def load_adapter(transformer: nn.Module, folder: os.PathLike) -> List[Optional[HadamardAttention]]:
    """Gives each block the attention that the directory tells of, with its maps, and the transformer such weights as
    the directory has for it. The files are checked first: after an error the transformer is as before."""
    blocks, tensors = adapter.read(folder)
    before = [block.attn1.processor for block in transformer.blocks]
    made = set_attention(transformer, blocks)
    try:
        targets = {**_own_tensors(transformer), **(maps := map_tensors(transformer))}
        _check(folder, tensors, targets, maps)
    except ValueError:
        for block, processor in zip(transformer.blocks, before):
            block.attn1.set_processor(processor)
        raise
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)
    return made


def _check(folder, tensors, targets, maps) -> None:
    file = os.path.join(folder, adapter.WEIGHTS)
    missing = [name for name in maps if name not in tensors]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    for name, tensor in tensors.items():
        if name not in targets:
            raise ValueError(f"{file} has {name}, neither a map that {adapter.CONFIG} tells of nor a weight")
        if tensor.shape != targets[name].shape:
            raise ValueError(f"{file}: {name} is {list(tensor.shape)}, wanted {list(targets[name].shape)}")
