"""Small whole models of every family, quantized or plain, written without a line of cutpq.

    model = write_model(tmp_path, "qwen2", quantized=True)

writes a folder that load_model reads and returns what it wrote: the config, and each tensor by name; a quantized
module's `.weight` (N, K) as it dequantizes to float16. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import Module, quantization_config, tensors_of
from safetensors.numpy import save_file

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# What differs from _LLAMA in config.json, as the families' own writers put it: keys of transformers 4 and of 5.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_theta": 10000.0, "torch_dtype": "float16"},
    "llama3": {
        "model_type": "llama",
        "rope_parameters": LLAMA3_ROPE | {"rope_theta": 500000.0},
        "dtype": "float16",
        "tie_word_embeddings": True,
    },
    "mistral": {
        "model_type": "mistral",
        "rope_theta": 10000.0,
        "sliding_window": 5,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "head_dim": None, "use_sliding_window": False},
    "granite": {
        "model_type": "granite",
        "rope_theta": 10000.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "phi3": {"model_type": "phi3", "rope_theta": 10000.0, "head_dim": None, "pad_token_id": 0, "sliding_window": 7},
    "mixtral": {
        "model_type": "mixtral",
        "rope_theta": 1000000.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "gpt_bigcode": {
        "model_type": "gpt_bigcode",
        "n_embd": 64,
        "n_head": 8,
        "n_layer": 2,
        "n_inner": 96,
        "n_positions": 64,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_pytorch_tanh",
        "vocab_size": 101,
        "multi_query": True,
    },
}

_LLAMA: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 101,
    "tie_word_embeddings": False,
}

_CLASSES = {"gpt_bigcode": "GPTBigCode", "phi3": "Phi3"}


@dataclass(frozen=True)
class Model:
    """What was written: config, and float tensors by name; of quantized modules the dequantized (N, K) weight."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def write_model(
    folder: str | Path,
    family: str = "llama",
    *,
    quantized: bool = False,
    bits: int = 4,
    group_size: int = 16,
    seed: int = 0,
    **config: Any,
) -> Model:
    """Write one of CONFIGS; quantized: `bits` in act-order, gate and up and q, k, v each with an order of their own.

    config  keys to change in config.json; None leaves a key away
    """
    rng = np.random.default_rng(seed)
    values = (CONFIGS[family] if family == "gpt_bigcode" else _LLAMA | CONFIGS[family]) | config
    values = {key: value for key, value in values.items() if value is not None}
    kind = values["model_type"]
    values["architectures"] = [f"{_CLASSES.get(kind, kind.capitalize())}ForCausalLM"]
    stored, meant = {}, {}
    for name, shape in _tensors(values):
        module = name.removesuffix(".weight")
        if quantized and _is_quantized(name):
            stored.update(_quantize(rng, module, shape, bits, group_size, meant))
        else:
            meant[name] = stored[name] = _random(rng, name, shape)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    if quantized:
        values["quantization_config"] = quantization_config("gptq", bits, group_size, sym=True, desc_act=True)
    (folder / "config.json").write_text(json.dumps(values))
    return Model(values, meant)


def _tensors(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and shape, as transformers stores them."""
    if config["model_type"] == "gpt_bigcode":
        return _bigcode_tensors(config)
    H, I, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", H // heads)
    A, B = heads * head_dim, kv_heads * head_dim
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (V, H)), ("model.norm.weight", (H,))]
    if not config["tie_word_embeddings"]:
        found.append(("lm_head.weight", (V, H)))
    biased = {"qwen2": {"q_proj", "k_proj", "v_proj"}}.get(config["model_type"], set())
    if config.get("attention_bias"):
        biased |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.get("mlp_bias"):
        biased |= {"gate_proj", "up_proj", "down_proj"}
    linear = {"self_attn": {"q_proj": (A, H), "k_proj": (B, H), "v_proj": (B, H), "o_proj": (H, A)},
              "mlp": {"gate_proj": (I, H), "up_proj": (I, H), "down_proj": (H, I)}}  # fmt: skip
    if config["model_type"] == "phi3":
        linear = {"self_attn": {"qkv_proj": (A + 2 * B, H), "o_proj": (H, A)},
                  "mlp": {"gate_up_proj": (2 * I, H), "down_proj": (H, I)}}  # fmt: skip
    if config["model_type"] == "mixtral":
        expert = {"w1": (I, H), "w3": (I, H), "w2": (H, I)}
        experts = {f"experts.{e}.{n}": shape for e in range(config["num_local_experts"]) for n, shape in expert.items()}
        linear["block_sparse_moe"] = {"gate": (config["num_local_experts"], H), **experts}
        del linear["mlp"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found += [(f"{at}.{norm}.weight", (H,)) for norm in ("input_layernorm", "post_attention_layernorm")]
        for parent, children in linear.items():
            for child, shape in children.items():
                found.append((f"{at}.{parent}.{child}.weight", shape))
                if child in biased:
                    found.append((f"{at}.{parent}.{child}.bias", shape[:1]))
    return found


def _bigcode_tensors(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    H, I = config["n_embd"], config["n_inner"]
    D = H // config["n_head"]
    found: list[tuple[str, tuple[int, ...]]] = [
        ("transformer.wte.weight", (config["vocab_size"], H)),
        ("transformer.wpe.weight", (config["n_positions"], H)),
    ]
    modules: list[tuple[str, tuple[int, ...]]] = [("transformer.ln_f", (H,))]
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}"
        modules += [(f"{at}.ln_1", (H,)), (f"{at}.ln_2", (H,))]
        modules += [(f"{at}.attn.c_attn", (H + 2 * D, H)), (f"{at}.attn.c_proj", (H, H))]
        modules += [(f"{at}.mlp.c_fc", (I, H)), (f"{at}.mlp.c_proj", (H, I))]
    for name, shape in modules:
        found += [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]
    return found


def _is_quantized(name: str) -> bool:
    parent, _, kind = name.rpartition(".")
    return kind == "weight" and (parent.rpartition(".")[0].endswith(("attn", "mlp")) or ".experts." in parent)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Sizes that keep activations near 1, norms included; no two features alike."""
    if len(shape) == 1:
        centre = 0.0 if name.endswith("bias") else 1.0
        return (centre + 0.2 * rng.standard_normal(shape)).astype(np.float16)
    tables = ("embed_tokens.weight", "wte.weight", "wpe.weight")
    scale = 1.0 if name.endswith(tables) else 1.5 / np.sqrt(shape[1])
    return (scale * rng.standard_normal(shape)).astype(np.float16)


def _quantize(
    rng: np.random.Generator,
    name: str,
    shape: tuple[int, ...],
    bits: int,
    group_size: int,
    meant: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    N, K = shape
    G, zero, deviation = -(-K // group_size), 1 << (bits - 1), 4.6 * 2.0 ** (bits - 4)  # deviation: of uniform codes
    codes = rng.integers(0, 1 << bits, (K, N)).astype(np.uint8)
    scales = (rng.uniform(0.5, 1.5, (G, N)) * 1.5 / (deviation * np.sqrt(K))).astype(np.float16)
    g_idx = rng.permutation(np.arange(K) // group_size).astype(np.int32)
    zeros = np.full((G, N), zero, np.uint8)
    meant[f"{name}.weight"] = (
        ((codes.astype(np.float32) - zero) * scales.astype(np.float32)[g_idx]).astype(np.float16).T
    )
    return tensors_of(Module(name, codes, zeros, scales, g_idx, bits, group_size), "gptq", sym=True, desc_act=True)
