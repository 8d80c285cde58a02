"""The parts of hla-tiny, as the classes of diffusers and transformers, and forwards over their weights that train fast.

The forwards compute exactly what the classes compute (tests/python checks this): the VAE over a whole clip at once
instead of chunk by chunk, the transformer with the 512 text rows folded to the few that differ. Hadamard linear
attention is plain PyTorch here, written from its definition (arXiv 2602.12128; docs of libhla).
"""

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

TEXT_LENGTH = 512  # rows the Wan pipeline pads the text to
MAX_TOKENS = 40  # longest caption, in pieces
LATENT_CHANNELS, LATENT_FRAMES, LATENT_SIZE = 16, 9, 16


def build_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=16, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 4, 6], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] *
        LATENT_CHANNELS,
    )  # fmt: skip


def build_transformer() -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=4, attention_head_dim=64, in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS, text_dim=192, freq_dim=256, ffn_dim=1024, num_layers=7, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=1024,
    )  # fmt: skip
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size, d_model=192, d_kv=32, d_ff=512, num_layers=2, num_heads=6, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
            tie_word_embeddings=False, is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip


def build_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        num_train_timesteps=1000,
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    )


# ---- VAE over whole clips, channels last: x [B, T, Y, X, C] ----


def _norm_silu_history(x, gamma, history: int):
    """SiLU of the VAE's norm, and each frame joined with the `history` frames before it: [B, T, Y, X, (history+1)
    C]."""
    scale = x.shape[-1] ** 0.5
    x = F.silu(F.normalize(x.float(), dim=-1) * (scale * gamma.flatten())).to(x.dtype)
    return _history(x, history)


def _history(x, history: int):
    if history == 0:
        return x
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, history, 0))
    return torch.cat([padded[:, k : k + x.shape[1]] for k in range(history + 1)], -1)


class WholeClipVae:
    """Encodes and decodes clips [B, 3, T, Y, X] with the weights of an AutoencoderKLWan. A causal 3-D convolution is
    a 2-D one over frames joined with their history, which the device does far faster at these widths."""

    def __init__(self, vae: AutoencoderKLWan, compiled: bool = False):
        self.vae = vae
        self.compiled = torch.compile(_norm_silu_history) if compiled else None

    def norm_silu(self, x, gamma, history: int):
        if self.compiled is None:
            return _norm_silu_history(x, gamma, history)
        for axis in range(4):  # one compilation a width, whatever the clip's size
            torch._dynamo.maybe_mark_dynamic(x, axis)
        return self.compiled(x, gamma, history)

    @staticmethod
    def _conv2d(x, weight, bias, stride=1, padding=0):
        """x [B, T, Y, X, C], weight [O, C, ky, kx]."""
        frames = x.shape[:2]
        y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, stride, padding)
        return y.permute(0, 2, 3, 1).unflatten(0, frames)

    def _conv3d(self, joined, conv):
        """joined: from _history; conv: the causal convolution [O, C, kt, ky, kx]."""
        weight = conv.weight.transpose(1, 2).flatten(1, 2)
        return self._conv2d(joined, weight, conv.bias, padding=weight.shape[-1] // 2)

    def _residual(self, block, x):
        h = self._conv3d(self.norm_silu(x, block.norm1.gamma, 2), block.conv1)
        h = self._conv3d(self.norm_silu(h, block.norm2.gamma, 2), block.conv2)
        shortcut = block.conv_shortcut
        return h + (self._conv3d(x, shortcut) if isinstance(shortcut, nn.Conv3d) else x)

    def _middle(self, mid, x):
        x = self._residual(mid.resnets[0], x)
        attention = mid.attentions[0]
        h = (F.normalize(x.float(), dim=-1) * (x.shape[-1] ** 0.5 * attention.norm.gamma.flatten())).to(x.dtype)
        q, k, v = self._conv2d(h, attention.to_qkv.weight, attention.to_qkv.bias).flatten(2, 3).chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v).unflatten(2, x.shape[2:4])
        x = x + self._conv2d(h, attention.proj.weight, attention.proj.bias)
        return self._residual(mid.resnets[1], x)

    def _down(self, block, x):
        conv = block.resample[1]
        x = self._conv2d(F.pad(x, (0, 0, 0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
        if block.mode == "downsample3d" and x.shape[1] > 1:
            joined = torch.cat([x[:, 0:-2:2], x[:, 1:-1:2], x[:, 2::2]], -1)
            x = torch.cat([x[:, :1], self._conv3d(joined, block.time_conv)], 1)
        return x

    def _up(self, block, x):
        if block.mode == "upsample3d" and x.shape[1] > 1:
            y = self._conv3d(_history(x[:, 1:], 2), block.time_conv)
            y = torch.stack(y.chunk(2, -1), 2).flatten(1, 2)  # even and odd frames in turn
            x = torch.cat([x[:, :1], y], 1)
        conv = block.resample[1]
        b, t, h, w, c = x.shape
        x = x[:, :, :, None, :, None].expand(b, t, h, 2, w, 2, c).reshape(b, t, 2 * h, 2 * w, c)
        return self._conv2d(x, conv.weight, conv.bias, padding=1)

    def encode(self, clip):
        """Mean and log-variance of the latents, each [B, C, F, Y, X], not normalised."""
        encoder = self.vae.encoder
        x = self._conv3d(_history(clip.permute(0, 2, 3, 4, 1).contiguous(), 2), encoder.conv_in)
        for layer in encoder.down_blocks:
            x = self._down(layer, x) if hasattr(layer, "mode") else self._residual(layer, x)
        x = self._middle(encoder.mid_block, x)
        x = self._conv3d(self.norm_silu(x, encoder.norm_out.gamma, 2), encoder.conv_out)
        x = self._conv3d(x, self.vae.quant_conv)
        return x.permute(0, 4, 1, 2, 3).float().chunk(2, 1)

    def decode(self, z):
        """Clips [B, 3, T, Y, X], not clamped, from latents that are not normalised."""
        decoder = self.vae.decoder
        x = self._conv3d(z.permute(0, 2, 3, 4, 1).contiguous(), self.vae.post_quant_conv)
        x = self._conv3d(_history(x, 2), decoder.conv_in)
        x = self._middle(decoder.mid_block, x)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = self._residual(resnet, x)
            if block.upsamplers is not None:
                x = self._up(block.upsamplers[0], x)
        x = self._conv3d(self.norm_silu(x, decoder.norm_out.gamma, 2), decoder.conv_out)
        return x.permute(0, 4, 1, 2, 3).float()


# ---- attention ----


class BlockMaps(nn.Module):
    """Feature maps of one block: for queries and keys, and for each factor, W [heads, rank, dim] and b [heads,
    rank]."""

    def __init__(self, heads: int, dim: int, ranks: list[int]):
        super().__init__()
        self.query_map = nn.ModuleList(self._map(heads, dim, rank) for rank in ranks)
        self.key_map = nn.ModuleList(self._map(heads, dim, rank) for rank in ranks)

    @staticmethod
    def _map(heads, dim, rank):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.randn(heads, rank, dim) / math.sqrt(dim))
        layer.bias = nn.Parameter(torch.zeros(heads, rank))
        return layer


class HadamardMaps(nn.Module):
    """The maps of all blocks; its state dict has the names of hla/model.safetensors."""

    def __init__(self, blocks: int, heads: int, dim: int, ranks: list[int]):
        super().__init__()
        self.ranks = ranks
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            block = nn.Module()
            block.attn1 = BlockMaps(heads, dim, ranks)
            self.blocks.append(block)

    def of_block(self, i: int) -> dict[str, torch.Tensor]:
        return dict(self.blocks[i].attn1.named_parameters())


FLOOR, EPSILON = 1e-3, 1e-6


def features(x, maps: dict, kind: str):
    """Khatri-Rao product of the factors' features: x [B, H, T, D] -> [B, H, T, R]."""
    product = None
    p = 0
    while f"{kind}.{p}.weight" in maps:
        weight, bias = maps[f"{kind}.{p}.weight"], maps[f"{kind}.{p}.bias"]
        f = F.relu(torch.einsum("bhtd,hrd->bhtr", x, weight.to(x.dtype)) + bias.to(x.dtype)[:, None]) + FLOOR
        product = f if product is None else (product[..., :, None] * f[..., None, :]).flatten(-2)
        p += 1
    return product


def hadamard_attention(q, k, v, maps: dict):
    """Normalised Hadamard linear attention with relu features, state form: q, k, v [B, H, T, D] -> [B, H, T, D]."""
    a, c = features(q, maps, "query_map"), features(k, maps, "key_map")
    state = c.transpose(-1, -2) @ (v / v.shape[-2])
    total = c.float().mean(-2)
    denominator = (a.float() * total[..., None, :]).sum(-1, keepdim=True)
    return ((a @ state).float() / (denominator + EPSILON / v.shape[-2])).to(v.dtype)


def softmax_attention(q, k, v, maps=None):
    return F.scaled_dot_product_attention(q, k, v)


# ---- transformer ----


def _linear(p: dict, name: str, x):
    return F.linear(x, p[name + ".weight"].to(x.dtype), p[name + ".bias"].to(x.dtype))


def _rms(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _modulate(x, shift, scale, dtype):
    return (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift).to(dtype)


def _rotate(x, cos, sin):
    """x [B, T, H, D], cos and sin [T, 1, D/2]; pairs are interleaved."""
    x1, x2 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], -1).flatten(-2).to(x.dtype)


def self_attention_inputs(p: dict, x, modulation, rope, heads: int, dtype):
    """q, k (normed and rotated) and v of a block, [B, H, T, D] each."""
    y = _modulate(x, modulation[:, 0:1], modulation[:, 1:2], dtype)
    q = _rotate(_rms(_linear(p, "attn1.to_q", y), p["attn1.norm_q.weight"]).unflatten(-1, (heads, -1)), *rope)
    k = _rotate(_rms(_linear(p, "attn1.to_k", y), p["attn1.norm_k.weight"]).unflatten(-1, (heads, -1)), *rope)
    v = _linear(p, "attn1.to_v", y).unflatten(-1, (heads, -1))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def block_after_attention(p: dict, x, attended, context, key_bias, modulation, heads: int, dtype):
    """The rest of a block: residuals, cross attention, feed-forward. attended [B, H, T, D]; x stays float32."""
    x = x + modulation[:, 2:3] * _linear(p, "attn1.to_out.0", attended.transpose(1, 2).flatten(2)).float()
    y = F.layer_norm(x, x.shape[-1:], p["norm2.weight"], p["norm2.bias"], 1e-6).to(dtype)
    q = _rms(_linear(p, "attn2.to_q", y), p["attn2.norm_q.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = _rms(_linear(p, "attn2.to_k", context), p["attn2.norm_k.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2)
    v = _linear(p, "attn2.to_v", context).unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = (q @ k.transpose(-1, -2)).float() / q.shape[-1] ** 0.5 + key_bias[:, None, None]
    y = (scores.softmax(-1).to(dtype) @ v).transpose(1, 2).flatten(2)
    x = x + _linear(p, "attn2.to_out.0", y).float()
    y = _modulate(x, modulation[:, 3:4], modulation[:, 4:5], dtype)
    y = _linear(p, "ffn.net.2", F.gelu(_linear(p, "ffn.net.0.proj", y), approximate="tanh"))
    return x + modulation[:, 5:6] * y.float()


class FastTransformer:
    """Forward of a WanTransformer3DModel with softmax or Hadamard self-attention. dtype: of matrix products."""

    def __init__(self, model: WanTransformer3DModel, dtype=torch.bfloat16, compiled: bool = False):
        self.model, self.dtype, self.heads = model, dtype, model.config.num_attention_heads

        def block(p, maps, x, modulation, context, key_bias, rope):
            q, k, v = self_attention_inputs(p, x, modulation, rope, self.heads, dtype)
            attended = softmax_attention(q, k, v) if maps is None else hadamard_attention(q, k, v, maps)
            return block_after_attention(p, x, attended, context, key_bias, modulation, self.heads, dtype)

        def inputs(p, x, modulation, rope):
            return self_attention_inputs(p, x, modulation, rope, self.heads, dtype)

        def rest(p, x, attended, context, key_bias, modulation):
            return block_after_attention(p, x, attended, context, key_bias, modulation, self.heads, dtype)

        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.block, self.inputs, self.rest = wrap(block), wrap(inputs), wrap(rest)
        self.rope = None

    def prepare(self, latents, timestep, text):
        """Tokens x, modulation of the blocks, time embedding, projected text, RoPE."""
        model = self.model
        if self.rope is None:
            cos, sin = model.rope(latents)
            self.rope = cos[0, :, :, 0::2].contiguous(), sin[0, :, :, 1::2].contiguous()
        weight = model.patch_embedding.weight.flatten(1)
        x = latents.flatten(2).transpose(1, 2).float() @ weight.t() + model.patch_embedding.bias
        condition = model.condition_embedder
        temb = condition.time_embedder(condition.timesteps_proj(timestep).float())
        modulation = condition.time_proj(condition.act_fn(temb)).unflatten(1, (6, -1)).float()
        return x, modulation, temb, condition.text_embedder(text.float()).to(self.dtype)

    def finish(self, x, temb, shape):
        model = self.model
        shift, scale = (model.scale_shift_table + temb[:, None]).chunk(2, 1)
        y = _modulate(x, shift, scale, torch.float32)
        return model.proj_out(y).transpose(1, 2).reshape(shape)

    def __call__(self, latents, timestep, text, key_bias, maps: HadamardMaps | None = None, weights=None):
        """Velocity like latents [B, C, F, Y, X] (patch size 1). text [B, L, text_dim] and key_bias [B, L] from
        fold_text. weights: tensors by their names in the model that take the place of its own."""
        x, modulation, temb, context = self.prepare(latents, timestep, text)
        for i in range(len(self.model.blocks)):
            p = self.block_parameters(i, weights)
            mod = p.pop("scale_shift_table") + modulation
            x = self.block(p, None if maps is None else maps.of_block(i), x, mod, context, key_bias, self.rope)
        return self.finish(x, temb, latents.shape)

    def block_parameters(self, i: int, weights=None) -> dict[str, torch.Tensor]:
        p = dict(self.model.blocks[i].named_parameters())
        if weights:
            p = {name: weights.get(f"blocks.{i}.{name}", value) for name, value in p.items()}
        return p


def fold_text(hidden, mask):
    """Text rows for cross attention, and the bias that makes MAX_TOKENS + 1 rows stand for the pipeline's 512: rows
    beyond the caption are zero rows there, all alike, so the ones kept share their weight. hidden [B, L, d], mask [B,
    L] of 0/1."""
    text = F.pad(hidden * mask[..., None], (0, 0, 0, 1))
    real = F.pad(mask, (0, 1))
    length = mask.sum(1, keepdim=True).float()
    kept = real.shape[1] - length
    return text, torch.where(real > 0, 0.0, ((TEXT_LENGTH - length) / kept).log())


# ---- sampling ----


@torch.no_grad()
def sample(velocity, text, null_text, noise, steps: int, guidance: float):
    """UniPC with classifier-free guidance. velocity(latents, timestep, text, key_bias); text and null_text from
    fold_text."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise
    both = tuple(torch.cat([a, b]) for a, b in zip(text, null_text, strict=True))
    for t in scheduler.timesteps:
        time = t.expand(len(latents) * 2).float()
        positive, negative = velocity(torch.cat([latents, latents]), time, *both).float().chunk(2)
        latents = scheduler.step(negative + guidance * (positive - negative), t, latents, return_dict=False)[0]
    return latents
