"""Logits of a whole sequence in float64, from each family's formula written out; imports nothing of cutpq.

    logits(config, tensors, tokens)     config.json as transformers writes it, tensors by their names, tokens (T,)

One pass over one sequence, no cache, no ranks: all that the package does differently.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


def logits(config: dict[str, Any], tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
    """(T, vocabulary) float64."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return (
        _bigcode(config, weights, tokens) if config["model_type"] == "gpt_bigcode" else _llama(config, weights, tokens)
    )


def _llama(config: dict[str, Any], w: Tensors, tokens: np.ndarray) -> np.ndarray:
    kind, eps = config["model_type"], config["rms_norm_eps"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    D = config.get("head_dim", config["hidden_size"] // heads)
    window = config.get("sliding_window") if kind in ("mistral", "phi3") else None
    turn = _rotation(config, D, len(tokens))
    scale = config.get("attention_multiplier", 1 / math.sqrt(D))
    x = w["model.embed_tokens.weight"][tokens] * config.get("embedding_multiplier", 1)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = _rms(x, w[f"{at}.input_layernorm.weight"], eps)
        if kind == "phi3":
            qkv = _linear(w, f"{at}.self_attn.qkv_proj", y)
            q, k, v = np.split(qkv, [heads * D, (heads + kv_heads) * D], axis=1)
        else:
            q, k, v = (_linear(w, f"{at}.self_attn.{n}_proj", y) for n in "qkv")
        q, k, v = (a.reshape(len(tokens), -1, D) for a in (q, k, v))
        y = _attend(turn(q), turn(k), v, scale, window)
        x = x + _linear(w, f"{at}.self_attn.o_proj", y) * config.get("residual_multiplier", 1)
        y = _rms(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        if kind == "mixtral":
            x = x + _experts(w, f"{at}.block_sparse_moe", y, config["num_experts_per_tok"])
            continue
        if kind == "phi3":
            gate, up = np.split(_linear(w, f"{at}.mlp.gate_up_proj", y), 2, axis=1)
        else:
            gate, up = _linear(w, f"{at}.mlp.gate_proj", y), _linear(w, f"{at}.mlp.up_proj", y)
        y = _linear(w, f"{at}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        x = x + y * config.get("residual_multiplier", 1)
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return _rms(x, w["model.norm.weight"], eps) @ head.T / config.get("logits_scaling", 1)


def _experts(w: Tensors, at: str, y: np.ndarray, chosen: int) -> np.ndarray:
    """Token by token: the softmax over all experts, of which the largest are kept and made to sum to 1."""
    total = np.zeros_like(y)
    for t, token in enumerate(y):
        p = np.exp(w[f"{at}.gate.weight"] @ token)
        p /= p.sum()
        best = sorted(range(len(p)), key=lambda e: -p[e])[:chosen]
        for e in best:
            w1, w2, w3 = (w[f"{at}.experts.{e}.w{n}.weight"] for n in (1, 2, 3))
            gate = w1 @ token
            total[t] += p[e] / sum(p[b] for b in best) * (w2 @ (gate / (1 + np.exp(-gate)) * (w3 @ token)))
    return total


def _bigcode(config: dict[str, Any], w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, eps = config["n_embd"], config["layer_norm_epsilon"]
    D = H // config["n_head"]
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: len(tokens)]
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}"
        qkv = _linear(w, f"{at}.attn.c_attn", _norm(w, f"{at}.ln_1", x, eps))
        q, k, v = np.split(qkv, [H, H + D], axis=1)
        y = _attend(q.reshape(len(x), -1, D), k[:, None], v[:, None], 1 / math.sqrt(D), None)
        x = x + _linear(w, f"{at}.attn.c_proj", y)
        y = _linear(w, f"{at}.mlp.c_fc", _norm(w, f"{at}.ln_2", x, eps))
        y = y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + _linear(w, f"{at}.mlp.c_proj", y)
    return _norm(w, "transformer.ln_f", x, eps) @ w["transformer.wte.weight"].T


def _linear(w: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight


def _norm(w: Tensors, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None) -> np.ndarray:
    """q (T, heads, D), k and v (T, kv_heads, D) -> (T, heads * D), each query seeing itself and what is before."""
    T, heads, _ = q.shape
    k, v = (np.repeat(a, heads // a.shape[1], axis=1) for a in (k, v))
    behind = np.arange(T)[:, None] - np.arange(T)
    seen = (behind >= 0) & (behind < (window or T))
    scores = np.where(seen, np.einsum("thd,shd->hts", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(T, -1)


def _rotation(config: dict[str, Any], D: int, T: int) -> Any:
    """x (T, heads, D) -> x turned: features i and i + D/2 are a complex number."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    frequency = np.array([theta ** (-2 * i / D) for i in range(D // 2)])
    if rope.get("rope_type") == "linear":
        frequency = frequency / rope["factor"]
    if rope.get("rope_type") == "llama3":
        frequency = np.array([_llama3(f, rope) for f in frequency])
    turn = np.exp(1j * np.arange(T)[:, None] * frequency)[:, None]

    def rotate(x: np.ndarray) -> np.ndarray:
        z = (x[..., : D // 2] + 1j * x[..., D // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=-1)

    return rotate


def _llama3(frequency: float, rope: dict[str, Any]) -> float:
    """Llama 3.1's rule for one frequency, by its wavelength."""
    wavelength, context = 2 * math.pi / frequency, rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / rope["factor"]
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency
