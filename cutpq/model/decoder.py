"""What a decoder-only transformer is: its sizes, the choice of its formulas, and the names of its modules.

Families differ in nothing else. Each has a small module that reads its config.json into a Decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checkpoint.claims import Config
from ..checkpoint.errors import CheckpointError


@dataclass(frozen=True)
class Decoder:
    """Sizes, formulas and names, with which transformer.py runs a model.

    kv_heads        each serves heads / kv_heads query heads, in order
    max_positions   longest sequence that the model was made for
    norm            "rms" or "layer"; eps is added to the variance
    rope            (head_dim / 2,) float64 angle per position of each pair of features, or None
    experts         MLPs of a block, 0 where it has one for all tokens; a token passes through `chosen_experts`
    router          child of a block that chooses them
    positions       name of the table of learned positions, or None
    window          how many keys a query sees, or None for all
    qkv             children of a block: three modules, or one that holds [q | k | v]
    biased          children of a block that must have a bias
    tied            whether the head's weight is the embedding's
    *_scale         factors: of q @ k, of the embedding, of what a block adds, and of the logits
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    norm: str
    eps: float
    tied: bool
    attention_scale: float
    embedding: str = "model.embed_tokens"
    block: str = "model.layers.{}"
    first_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    second_norm: str = "post_attention_layernorm"
    last_norm: str = "model.norm"
    head: str = "lm_head"
    experts: int = 0
    chosen_experts: int = 0
    router: str = "block_sparse_moe.gate"
    positions: str | None = None
    rope: np.ndarray | None = None
    window: int | None = None
    biased: tuple[str, ...] = ()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0


def rope_angles(config: Config, head_dim: int) -> np.ndarray:
    """Angle per position of each pair of a head's features: theta^(-2i / head_dim), (head_dim / 2,) float64.

    Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). Types "default",
    "linear" (all angles divided by `factor`) and "llama3" (low frequencies divided, high ones kept, between them a
    linear blend: Llama 3.1's own rule). Raises CheckpointError for others, and for a rotation of part of a head.
    """
    rope = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    for section in (rope, config):
        if section.number("partial_rotary_factor", 1.0) != 1.0:
            raise section.refuse("partial_rotary_factor", "1.0, all features of a head rotated")
    if head_dim % 2:
        raise CheckpointError(f"{config.where}: head_dim: expected an even number, found {head_dim}")
    key = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.word(key, "default")
    angles = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if kind == "default":
        return angles
    if kind == "linear":
        return angles / rope.number("factor")
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        turns = rope.count("original_max_position_embeddings") * angles / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return angles * (kept + (1 - kept) / rope.number("factor"))
    raise rope.refuse(key, "default, linear or llama3")
