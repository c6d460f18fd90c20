"""A Qwen3-MoE in PyTorch, for training only; names and layout follow mlx-lm's `qwen3_moe`."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model, in the keys of a Hugging Face config.json."""

    vocab_size: int = 8192
    hidden_size: int = 384
    num_hidden_layers: int = 10
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_experts: int = 48
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    def to_json(self) -> dict[str, object]:
        """Return the config.json that `mlx_lm` and `transformers` load."""
        fixed: dict[str, object] = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "intermediate_size": 3 * self.hidden_size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "hidden_act": "silu",
            "rope_scaling": None,
        }
        return fixed | asdict(self)


class Attention(nn.Module):
    """Causal attention with grouped key/value heads, normalised queries and keys, and RoPE."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the weights, not yet filled."""
        super().__init__()
        self.config = config
        width, head = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=False)
        self.q_norm = nn.RMSNorm(head, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mixed tokens, [B, T, D]."""
        batch, length, _ = x.shape
        head = self.config.head_dim
        q = self.q_norm(self.q_proj(x).view(batch, length, -1, head)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, -1, head)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, head).transpose(1, 2)
        q, k = rotate(q, rope), rotate(k, rope)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Return `x` turned by its position: RoPE over the two halves of a head."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


class Experts(nn.Module):
    """The router and the experts of one layer; weights are [E, out, in] as mlx-lm stacks them."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the weights, not yet filled."""
        super().__init__()
        num, width, inner = (
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.top_k, self.num_experts = config.num_experts_per_tok, num
        self.gate = nn.Linear(width, num, bias=False)
        self.gate_proj = nn.Parameter(torch.empty(num, inner, width))
        self.up_proj = nn.Parameter(torch.empty(num, inner, width))
        self.down_proj = nn.Parameter(torch.empty(num, width, inner))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' sum, [N, D], and the load-balance loss (1 when balanced)."""
        chances = F.softmax(self.gate(x).float(), dim=-1)
        scores, chosen = torch.topk(chances, self.top_k, dim=-1)
        scores = scores / scores.sum(-1, keepdim=True)
        order = torch.argsort(chosen.flatten())
        back = torch.argsort(order)
        experts = torch.arange(self.num_experts, device=x.device)
        counts = (chosen.flatten().unsqueeze(-1) == experts).sum(0)
        ends = counts.cumsum(0).to(torch.int32)
        rows = Permute.apply(x.repeat_interleave(self.top_k, dim=0), order, back)
        inner = F.silu(grouped(rows, self.gate_proj, ends)) * grouped(rows, self.up_proj, ends)
        out = Permute.apply(grouped(inner, self.down_proj, ends), back, order)
        total = (out.unflatten(0, (-1, self.top_k)) * scores.to(out.dtype).unsqueeze(-1)).sum(1)
        share = counts.float() / chosen.numel()
        return total, self.num_experts * (share * chances.mean(0)).sum()


class Permute(torch.autograd.Function):
    """Rows in another order; the gradient is the inverse order, so that nothing is added up."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, order: Tensor, back: Tensor
    ) -> Tensor:
        """Return `x[order]`; `back` is the inverse of `order`."""
        ctx.save_for_backward(back)
        return x[order]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, None, None]:
        """Return the gradient in the old order."""
        (back,) = ctx.saved_tensors
        return gradient[back], None, None


def grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return each row times its expert's matrix; `ends` are the experts' last rows plus one."""
    if rows.is_cuda:
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
    starts = [0, *ends.tolist()[:-1]]
    spans = zip(starts, ends.tolist(), strict=True)
    return torch.cat([rows[a:b] @ weight[e].T for e, (a, b) in enumerate(spans)])


class Block(nn.Module):
    """One layer: attention, then the experts, each with its norm and residual."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the weights, not yet filled."""
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Experts(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the layer's output and its load-balance loss."""
        x = x + self.self_attn(self.input_layernorm(x), rope)
        mixed, balance = self.mlp(self.post_attention_layernorm(x).flatten(0, 1))
        return x + mixed.view_as(x), balance


class MoEModel(nn.Module):
    """The language model with tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the weights, not yet filled."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.outer(
            torch.arange(config.max_position_embeddings).float(), config.rope_theta**-half
        )
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def initialise(self, seed: int) -> None:
        """Fill every weight: normal, smaller where a layer writes to the residual stream."""
        torch.manual_seed(seed)
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
            else:
                scale = depth if name.endswith(("o_proj.weight", "down_proj")) else 1.0
                std = 0.02 if "embed" in name else weight.shape[-1] ** -0.5
                nn.init.normal_(weight, std=scale * std)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss in nats a token and the summed load-balance loss."""
        length = tokens.shape[1]
        rope = self.cos[:length], self.sin[:length]
        x = self.embed_tokens(tokens)
        balance = torch.zeros((), device=x.device)
        for layer in self.layers:
            x, part = layer(x, rope)
            balance = balance + part
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return loss, balance
