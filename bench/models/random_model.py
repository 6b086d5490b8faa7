"""A whole model of random weights in a known shape, read like a checkpoint: only what is asked for comes to be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cutpq.checkpoint.claims import ModuleSpec
from cutpq.cost.transformer import ModelShape
from cutpq.weights.weight import QuantWeight
from models.shapes import Selection, hashed, random_order, random_weight


@dataclass(frozen=True)
class RandomModel:
    """Llama with a gate, GPT-BigCode without, of `layers` blocks; enough to measure time with, not to talk to.

    bits        4 (groups of group_size, act-order everywhere) or 16
    """

    shape_of_model: ModelShape
    layers: int
    bits: int = 4
    group_size: int = 128

    folder = Path("random weights")

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        s = self.shape_of_model
        if s.gated:
            return {
                "model_type": "llama",
                "hidden_size": s.hidden,
                "intermediate_size": s.intermediate,
                "num_hidden_layers": self.layers,
                "num_attention_heads": s.heads,
                "num_key_value_heads": s.kv_heads,
                "head_dim": s.head_dim,
                "vocab_size": s.vocabulary,
                "max_position_embeddings": 1 << 17,
            }
        return {
            "model_type": "gpt_bigcode",
            "n_embd": s.hidden,
            "n_head": s.heads,
            "n_layer": self.layers,
            "n_positions": 8192,
            "vocab_size": s.vocabulary,
        }

    @cached_property
    def _modules(self) -> dict[str, tuple[int, int]]:
        """(K, N) of each linear layer of a block."""
        s = self.shape_of_model
        H, A, B, I = s.hidden, s.heads * s.head_dim, s.kv_heads * s.head_dim, s.intermediate
        if s.gated:
            block = {f"self_attn.{n}_proj": (H, N) for n, N in (("q", A), ("k", B), ("v", B))}
            block |= {"self_attn.o_proj": (A, H), "mlp.gate_proj": (H, I), "mlp.up_proj": (H, I)}
            block |= {"mlp.down_proj": (I, H)}
        else:
            block = {"attn.c_attn": (H, A + 2 * B), "attn.c_proj": (A, H), "mlp.c_fc": (H, I), "mlp.c_proj": (I, H)}
        at = "model.layers" if s.gated else "transformer.h"
        return {f"{at}.{layer}.{name}": shape for layer in range(self.layers) for name, shape in block.items()}

    @cached_property
    def _tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that are not quantized."""
        s = self.shape_of_model
        V, H = s.vocabulary, s.hidden
        found: dict[str, tuple[int, ...]] = {}
        if s.gated:
            norms = [f"model.layers.{i}.{n}" for i in range(self.layers) for n in ("input_layernorm", _SECOND)]
            found |= {f"{norm}.weight": (H,) for norm in [*norms, "model.norm"]}
            found |= {"model.embed_tokens.weight": (V, H), "lm_head.weight": (V, H)}
        else:
            norms = [f"transformer.h.{i}.{n}" for i in range(self.layers) for n in ("ln_1", "ln_2")]
            found |= {f"{norm}.{kind}": (H,) for norm in [*norms, "transformer.ln_f"] for kind in ("weight", "bias")}
            found |= {"transformer.wte.weight": (V, H), "transformer.wpe.weight": (8192, H)}
            found |= {f"{name}.bias": (N,) for name, (_, N) in self._modules.items()}
        if self.bits == 16:
            found |= {f"{name}.weight": (N, K) for name, (K, N) in self._modules.items()}
        return found

    def weights(self) -> list[str]:
        """Names of the quantized modules."""
        return [] if self.bits == 16 else list(self._modules)

    def shape(self, name: str) -> tuple[int, int]:
        """(K, N) of a module."""
        return self._modules[name]

    def g_idx(self, name: str) -> np.ndarray:
        """g_idx; modules that take the same x share it."""
        child = name.rpartition(".")[2]
        return random_order(_SHARED.get(child, child), self.shape(name)[0], self.group_size)

    def spec(self, name: str) -> ModuleSpec:
        """What a config would claim."""
        return ModuleSpec("gptq", "gptq", self.bits, self.group_size, desc_act=True, sym=True)

    def weight(self, name: str, rows: Selection = None, columns: Selection = None) -> QuantWeight:
        """A quantized module, or rows and columns of it."""
        biased = not self.shape_of_model.gated
        return random_weight(name, self.shape(name), self.g_idx(name), self.group_size, rows, columns, biased)

    def tensors(self) -> list[str]:
        """Names of the tensors that are not quantized."""
        return list(self._tensors)

    def has(self, name: str) -> bool:
        """Whether there is a plain tensor of this name."""
        return name in self._tensors

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a plain tensor."""
        return self._tensors[name]

    def check_tensor(self, name: str, shape: tuple[int | str, ...]) -> tuple[int, ...]:
        """The shape of a plain tensor, which is made to be right."""
        return self._tensors[name]

    def tensor(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor of that name, or rows of it, float16: norms one, biases zero, others spread around zero."""
        shape = self._tensors[name]
        rows = slice(None) if rows is None else rows
        if len(shape) == 1:
            return np.full(shape, float(name.endswith("weight")), np.float16)[rows]
        numbers, _ = hashed(name, (shape[0], shape[1]), rows, slice(None))
        return (numbers.astype(np.float16) - np.float16(7.5)) * np.float16(1 / (8 * shape[1] ** 0.5))


_SECOND = "post_attention_layernorm"
_SHARED = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv") | dict.fromkeys(("gate_proj", "up_proj"), "gate and up")
