"""Small checkpoints of every format, written from the formats' descriptions and without a line of cutpq.

    modules = write_checkpoint(tmp_path, format="gptq", group_size=32, desc_act=True)

writes a folder that open_checkpoint reads, and returns what it wrote: a list of Module. The same arguments give the
same bytes. Random weights are of the size that keeps activations near 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

AWQ_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Module:
    """One quantized module as it was meant, whatever way it was stored.

    codes (K, N) uint8, zeros (G, N) uint8, scales (G, N) of the stored dtype, g_idx (K,) int32, bias (N,) float16
    """

    name: str
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    g_idx: np.ndarray
    bits: int
    group_size: int
    bias: np.ndarray | None = None


def write_checkpoint(
    folder: str | Path,
    *,
    layers: int = 1,
    hidden: int = 64,
    intermediate: int = 128,
    heads: int = 2,
    head_dim: int = 48,
    experts: int = 2,
    format: str = "gptq",
    bits: int = 4,
    group_size: int = 32,
    sym: bool = True,
    desc_act: bool = True,
    seed: int = 0,
    family: str = "llama",
    scale_dtype: Any = np.float16,
    gate_up_same_order: bool = True,
    shards: int = 1,
    attention: bool = True,
) -> list[Module]:
    """Write a model of random weights and return its quantized modules.

    format      "gptq", "gptq_v2", "awq" or "compressed-tensors"
    family      "llama", "bigcode", "phi3" or "mixtral"
    group_size  -1 for one group; it need not divide anything
    attention   False leaves the attention's modules away
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden": hidden, "intermediate": intermediate, "heads": heads, "head_dim": head_dim, "experts": experts}
    modules: list[Module] = []
    for layer in range(layers):
        orders: dict[str, np.ndarray] = {}
        for name, K, N, shares_order, has_bias in _modules_of(family, layer, sizes):
            if not attention and "attn" in name:
                continue
            scrambled = desc_act and format != "awq"
            g_idx = orders.get(shares_order) if gate_up_same_order else None
            if g_idx is None:
                g_idx = _order(rng, K, group_size, scrambled)
                orders[shares_order] = g_idx
            modules.append(_random_module(rng, name, N, g_idx, bits, group_size, sym, scale_dtype, has_bias))
    tensors = _plain_tensors(rng, family, layers, sizes)
    for module in modules:
        tensors.update(tensors_of(module, format, sym=sym, desc_act=desc_act))
    _save(folder, tensors, shards)
    config = _model_config(family, layers, sizes)
    config["quantization_config"] = quantization_config(format, bits, group_size, sym, desc_act)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return modules


def edit_tensors(folder: str | Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Let `change` alter the tensors of a folder's model.safetensors in place (a dict by name)."""
    path = Path(folder) / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def edit_config(folder: str | Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` alter the quantization config of a folder in place."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def tensors_of(module: Module, format: str, *, sym: bool, desc_act: bool) -> dict[str, np.ndarray]:
    """The tensors of one module as `format` stores them."""
    write = {"gptq": _gptq, "gptq_v2": _gptq_v2, "awq": _awq, "compressed-tensors": _compressed}[format]
    tensors = write(module, sym, desc_act)
    if module.bias is not None:
        tensors["bias"] = module.bias
    return {f"{module.name}.{tensor}": np.ascontiguousarray(array) for tensor, array in tensors.items()}


def quantization_config(format: str, bits: int, group_size: int, sym: bool, desc_act: bool) -> dict[str, Any]:
    """What the writers of `format` put into config.json."""
    if format == "awq":
        return {"quant_method": "awq", "bits": bits, "group_size": group_size, "version": "gemm", "zero_point": not sym}
    if format == "compressed-tensors":
        weights = {
            "num_bits": bits,
            "type": "int",
            "strategy": "channel" if group_size == -1 else "group",
            "group_size": None if group_size == -1 else group_size,
            "symmetric": sym,
            "actorder": "group" if desc_act else None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }
    return {
        "quant_method": "gptq",
        "checkpoint_format": format,
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": desc_act,
    }


def stream(values: np.ndarray, bits: int) -> np.ndarray:
    """(count, n) codes -> (ceil(count*bits/32), n) int32: their bits in a row, lowest first, cut into words."""
    count, n = values.shape
    line = ((values[:, None, :].astype(np.int64) >> np.arange(bits)[:, None]) & 1).reshape(count * bits, n)
    line = np.concatenate([line, np.zeros((-len(line) % 32, n), np.int64)]).astype(np.uint8)
    return np.packbits(line, axis=0, bitorder="little").T.copy().view("<i4").T


def _gptq(module: Module, sym: bool, desc_act: bool, offset: int = 1) -> dict[str, np.ndarray]:
    stored = (module.zeros.astype(np.int64) - offset) % (1 << module.bits)
    return {
        "qweight": stream(module.codes, module.bits),
        "qzeros": stream(stored.T, module.bits).T,
        "scales": module.scales,
        "g_idx": module.g_idx,
    }


def _gptq_v2(module: Module, sym: bool, desc_act: bool) -> dict[str, np.ndarray]:
    return _gptq(module, sym, desc_act, offset=0)


def _awq(module: Module, sym: bool, desc_act: bool) -> dict[str, np.ndarray]:
    def pack(values: np.ndarray) -> np.ndarray:
        words = np.zeros((values.shape[0], values.shape[1] // 8), np.int64)
        for nibble, column in enumerate(AWQ_COLUMN_OF_NIBBLE):
            words += values[:, column::8].astype(np.int64) * 16**nibble
        return words.astype(np.uint32).view(np.int32)

    return {"qweight": pack(module.codes), "qzeros": pack(module.zeros), "scales": module.scales}


def _compressed(module: Module, sym: bool, desc_act: bool) -> dict[str, np.ndarray]:
    K, N = module.codes.shape
    tensors = {
        "weight_packed": stream(module.codes, module.bits).T,
        "weight_scale": module.scales.T,
        "weight_shape": np.array([N, K], np.int64),
    }
    if not sym:
        tensors["weight_zero_point"] = stream(module.zeros.T, module.bits)
    if desc_act:
        tensors["weight_g_idx"] = module.g_idx
    return tensors


def _order(rng: np.random.Generator, K: int, group_size: int, scrambled: bool) -> np.ndarray:
    g_idx = np.zeros(K, np.int32) if group_size == -1 else (np.arange(K) // group_size).astype(np.int32)
    return rng.permutation(g_idx) if scrambled else g_idx


def _random_module(
    rng: np.random.Generator,
    name: str,
    N: int,
    g_idx: np.ndarray,
    bits: int,
    group_size: int,
    sym: bool,
    scale_dtype: Any,
    has_bias: bool,
) -> Module:
    K, G, middle = len(g_idx), int(g_idx.max()) + 1, 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (K, N)).astype(np.uint8)
    zeros = np.full((G, N), middle) if sym else rng.integers(middle // 2, middle + middle // 2 + 1, (G, N))
    scales = (rng.uniform(0.5, 1.5, (G, N)) / (middle * np.sqrt(K))).astype(scale_dtype)
    bias = rng.normal(0, 0.1, N).astype(np.float16) if has_bias else None
    return Module(name, codes, zeros.astype(np.uint8), scales, g_idx, bits, K if G == 1 else group_size, bias)


def _modules_of(family: str, layer: int, sizes: dict[str, int]) -> list[tuple[str, int, int, str, bool]]:
    """(name, K, N, key of the order it shares with others, whether it has a bias) of each module of a layer."""
    H, I, A = sizes["hidden"], sizes["intermediate"], sizes["heads"] * sizes["head_dim"]
    if family == "bigcode":
        at = f"transformer.h.{layer}"
        return [
            (f"{at}.attn.c_attn", H, A + 2 * sizes["head_dim"], "attn", True),
            (f"{at}.attn.c_proj", A, H, "o", True),
            (f"{at}.mlp.c_fc", H, I, "up", True),
            (f"{at}.mlp.c_proj", I, H, "down", True),
        ]
    at = f"model.layers.{layer}"
    o_proj = (f"{at}.self_attn.o_proj", A, H, "o", False)
    if family == "phi3":
        return [
            (f"{at}.self_attn.qkv_proj", H, 3 * A, "attn", False),
            o_proj,
            (f"{at}.mlp.gate_up_proj", H, 2 * I, "up", False),
            (f"{at}.mlp.down_proj", I, H, "down", False),
        ]
    attention = [(f"{at}.self_attn.{n}_proj", H, A, "attn", False) for n in "qkv"]
    if family == "mixtral":
        return [*attention, o_proj] + [
            (f"{at}.block_sparse_moe.experts.{e}.{n}", K, N, f"{e}.{order}", False)
            for e in range(sizes["experts"])
            for n, K, N, order in (("w1", H, I, "up"), ("w3", H, I, "up"), ("w2", I, H, "down"))
        ]
    return [
        *attention,
        o_proj,
        (f"{at}.mlp.gate_proj", H, I, "up", False),
        (f"{at}.mlp.up_proj", H, I, "up", False),
        (f"{at}.mlp.down_proj", I, H, "down", False),
    ]


def _plain_tensors(rng: np.random.Generator, family: str, layers: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """A few tensors that are not quantized."""
    top, at = ("transformer", "transformer.h") if family == "bigcode" else ("model", "model.layers")
    tensors = {f"{top}.embed_tokens.weight": rng.normal(0, 1, (16, sizes["hidden"])).astype(np.float16)}
    for layer in range(layers):
        tensors[f"{at}.{layer}.input_layernorm.weight"] = np.ones(sizes["hidden"], np.float16)
        if family == "mixtral":
            router = rng.normal(0, 1, (sizes["experts"], sizes["hidden"])).astype(np.float16)
            tensors[f"{at}.{layer}.block_sparse_moe.gate.weight"] = router
    return tensors


def _model_config(family: str, layers: int, sizes: dict[str, int]) -> dict[str, Any]:
    if family == "bigcode":
        return {
            "architectures": ["GPTBigCodeForCausalLM"],
            "model_type": "gpt_bigcode",
            "activation_function": "gelu_pytorch_tanh",
            "n_embd": sizes["hidden"],
            "n_inner": sizes["intermediate"],
            "n_head": sizes["heads"],
            "n_layer": layers,
        }
    name = {"llama": "Llama", "phi3": "Phi3", "mixtral": "Mixtral"}[family]
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"],
        "head_dim": sizes["head_dim"],
        "num_hidden_layers": layers,
    }


def _save(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    """One file, or an index and shards among which the tensors of each module are dealt out one by one."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = sorted(tensors)[shard::shards]
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
