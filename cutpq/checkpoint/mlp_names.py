"""Which modules of a checkpoint form an MLP, told by their names.

A model is a tree of names such as `model.layers.3.mlp.down_proj`. An MLP is a parent whose children carry one of the
sets of names below; nothing else about an architecture matters to tensor parallelism of its MLP.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from .errors import CheckpointError
from .folder import Checkpoint
from .tensors import natural_key


@dataclass(frozen=True)
class MlpModules:
    """Full module names of one MLP: down(act(gate(x)) * up(x)), or down(act(up(x))) where gate is None.

    gate        None for a non-gated MLP; the same name as `up` where one module holds [gate | up] (`fused`)
    activation  one of ops.formulas.ACTIVATIONS
    """

    gate: str | None
    up: str
    down: str
    activation: str

    @property
    def fused(self) -> bool:
        """Whether gate and up are the left and right half of one module's columns."""
        return self.gate == self.up

    @property
    def first(self) -> tuple[str, ...]:
        """The modules that are multiplied first: gate and up, or the one that is there."""
        return (self.up,) if self.gate is None or self.fused else (self.gate, self.up)

    @property
    def layer(self) -> int | None:
        """Number of the decoder layer, the first number in the name."""
        return layer_number(self.down)


# (gate, up, down) as children of one parent. Fused: gate and up have the same name.
_MLP_CHILDREN = (
    ("gate_proj", "up_proj", "down_proj"),  # Llama, Mistral, Qwen2/3, Granite 3, DeepSeek and their experts
    ("gate_up_proj", "gate_up_proj", "down_proj"),  # Phi-3
    ("w1", "w3", "w2"),  # Mixtral's experts
    ("w2", "w1", "c_proj"),  # Qwen 1: c_proj(w1(x) * silu(w2(x)))
    (None, "c_fc", "c_proj"),  # GPT-BigCode (Granite-20B, StarCoder), GPT-2
    (None, "dense_h_to_4h", "dense_4h_to_h"),  # Falcon, GPT-NeoX
    (None, "fc1", "fc2"),  # OPT, Phi-2
)

# Attention: columns of the first are heads; rows of the second are heads again.
_ATTENTION_COLUMN = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value", "W_pack", "Wqkv")
_ATTENTION_ROW = ("o_proj", "c_proj", "dense", "out_proj")

# Names of activations in Hugging Face configs -> ops.formulas.ACTIVATIONS.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def layer_number(name: str) -> int | None:
    """The first number in a module's name, which is its layer; None where there is none."""
    found = re.search(r"\.([0-9]{1,18})(\.|$)", name)
    return int(found[1]) if found else None


def mlps(ckpt: Checkpoint) -> list[MlpModules]:
    """Every MLP of the checkpoint, experts one by one, in the natural order of their names.

    Quantized modules and plain ones (`NAME.weight`) both count: a writer may leave some layers in float16.
    """
    plain = (name.removesuffix(".weight") for name in ckpt.tensors() if name.endswith(".weight"))
    children = defaultdict(set)
    for name in dict.fromkeys([*ckpt.weights(), *plain]):
        parent, _, child = name.rpartition(".")
        children[parent].add(child)
    found = []
    for parent, present in children.items():
        names = _match(present)
        if names is not None:
            gate, up, down = names
            gate = gate and f"{parent}.{gate}"
            activation = _activation(ckpt, gated=gate is not None)
            found.append(MlpModules(gate, f"{parent}.{up}", f"{parent}.{down}", activation))
    return sorted(found, key=lambda m: natural_key(m.down))


def mlp_modules(ckpt: Checkpoint, layer: int) -> MlpModules:
    """The one MLP of decoder layer `layer`.

    Raises CheckpointError where the layer has none, or several (experts): name the modules yourself then.
    """
    every = mlps(ckpt)
    of_layer = [m for m in every if m.layer == layer]
    if len(of_layer) == 1:
        return of_layer[0]
    if of_layer:
        raise CheckpointError(
            f"{ckpt.folder}: layer {layer} has {len(of_layer)} MLPs ({of_layer[0].down}, {of_layer[1].down}, ...); "
            "pass modules=, one of cutpq.mlps(ckpt)"
        )
    layers = sorted({m.layer for m in every if m.layer is not None})
    there = f"layers {layers[0]} to {layers[-1]} have one" if layers else "no layer has modules named like an MLP"
    raise CheckpointError(f"{ckpt.folder}: found no MLP in layer {layer}; {there}")


def expert_modules(ckpt: Checkpoint, layer: int, count: int) -> list[MlpModules]:
    """The `count` experts of decoder layer `layer`, in their order. Raises CheckpointError where it has others."""
    found = [m for m in mlps(ckpt) if m.layer == layer]
    if len(found) != count:
        raise CheckpointError(
            f"{ckpt.folder}: layer {layer}: expected {count} experts by config.json, found {len(found)}"
        )
    return found


def module_role(name: str) -> str:
    """How tensor parallelism cuts a module: "column" (output features), "row" (input features) or "other".

    Told by the module's name and that of its parent. Routers, embeddings and heads are "other".
    """
    parent, _, child = name.rpartition(".")
    if parent.endswith(("attn", "attention", "self_attention")):
        return "column" if child in _ATTENTION_COLUMN else "row" if child in _ATTENTION_ROW else "other"
    if child == "w2":  # Mixtral's down; in Qwen 1, whose parent is plain `mlp`, the gate
        return "row" if "expert" in parent or "feed_forward" in parent else "column"
    if child in {down for _, _, down in _MLP_CHILDREN}:
        return "row"
    first = {n for gate, up, _ in _MLP_CHILDREN for n in (gate, up)}
    return "column" if child in first or child in _ATTENTION_COLUMN else "other"


def _match(present: set[str]) -> tuple[str | None, str, str] | None:
    for names in _MLP_CHILDREN:
        if all(n is None or n in present for n in names):
            return names
    return None


def _activation(ckpt: Checkpoint, gated: bool) -> str:
    """The config's activation; where it names none, the one that every published model of that shape has."""
    config = ckpt.config
    for key in ("hidden_act", "activation_function", "hidden_activation", "activation"):
        if isinstance(config.get(key), str):
            name = config[key].lower()
            if name not in _ACTIVATIONS:
                raise CheckpointError(
                    f"{ckpt.folder}: config.json: {key} is {config[key]!r}, expected one of {', '.join(_ACTIVATIONS)}"
                )
            return _ACTIVATIONS[name]
    return "silu" if gated else "gelu_tanh"
