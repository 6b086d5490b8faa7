"""The model families that can be run: each reads its config.json into a Decoder. FAMILIES lists them by model_type.

To add a family, write a function Config -> Decoder and put it into FAMILIES.
"""

from __future__ import annotations

from typing import Any

from ..checkpoint.claims import Config
from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint
from ..checkpoint.tensors import read_json
from .decoder import Decoder, rope_angles

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def read_decoder(ckpt: Checkpoint) -> Decoder:
    """What kind of transformer a checkpoint holds. Raises CheckpointError for one that cannot be run."""
    config = Config(ckpt.config, str(ckpt.folder / "config.json"))
    family = config.word("model_type", "")
    if family not in FAMILIES:
        raise config.refuse("model_type", f"one of {', '.join(FAMILIES)}")
    decoder = FAMILIES[family](config)
    if decoder.heads % decoder.kv_heads:
        raise CheckpointError(
            f"{config.where}: expected a number of key/value heads that divides {decoder.heads} heads, "
            f"found {decoder.kv_heads}"
        )
    return decoder


def end_tokens(ckpt: Checkpoint) -> tuple[int, ...]:
    """The tokens that end a text: eos_token_id of generation_config.json, else of config.json; () without one.

    Raises CheckpointError for an eos_token_id that is neither a token nor a list of tokens.
    """
    path = ckpt.folder / "generation_config.json"
    where, named = path, read_json(path).get("eos_token_id") if path.is_file() else None
    if named is None:
        where, named = ckpt.folder / "config.json", ckpt.config.get("eos_token_id")
    tokens = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise CheckpointError(f"{where}: expected eos_token_id to be a token or a list of tokens, found {named!r}")
    return tuple(tokens)


def llama(config: Config) -> Decoder:
    """Llama 2 and 3, Mistral, Qwen2 and Granite 3: one shape, with biases in some and multipliers in others."""
    family = config.word("model_type", "llama")
    shared = _llama_sizes(config)
    biased: tuple[str, ...] = _ATTENTION if family == "qwen2" else ()
    if config.flag("attention_bias", False):
        biased = (*_ATTENTION, "self_attn.o_proj")
    if config.flag("mlp_bias", False):
        biased += _MLP
    if config.flag("use_sliding_window", False):
        raise config.refuse("use_sliding_window", "false")
    for divisor in ("logits_scaling", "residual_multiplier"):
        if config.number(divisor, 1.0) == 0:
            raise config.refuse(divisor, "a number other than 0")
    default_scale = 1.0 if family == "granite" else shared["head_dim"] ** -0.5
    return Decoder(
        **shared,
        max_positions=config.count("max_position_embeddings", 2048),
        eps=config.number("rms_norm_eps", 1e-6),
        window=config.count("sliding_window") if family == "mistral" and config.has("sliding_window") else None,
        biased=biased,
        attention_scale=config.number("attention_multiplier", default_scale),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logits_scale=1 / config.number("logits_scaling", 1.0),
    )


def phi3(config: Config) -> Decoder:
    """Phi-3: a Llama whose q, k and v are one module, and gate and up another."""
    shared = _llama_sizes(config)
    return Decoder(
        **shared,
        max_positions=config.count("max_position_embeddings", 4096),
        eps=config.number("rms_norm_eps", 1e-5),
        qkv=("self_attn.qkv_proj",),
        window=config.count("sliding_window") if config.has("sliding_window") else None,
        attention_scale=shared["head_dim"] ** -0.5,
    )


def mixtral(config: Config) -> Decoder:
    """Mixtral: a Llama whose MLP is one of several experts, of which each token passes through a few."""
    shared = _llama_sizes(config)
    experts, chosen = config.count("num_local_experts"), config.count("num_experts_per_tok")
    if chosen > experts:
        raise config.refuse("num_experts_per_tok", f"at most num_local_experts={experts}")
    return Decoder(
        **shared,
        max_positions=config.count("max_position_embeddings", 4096),
        eps=config.number("rms_norm_eps", 1e-5),
        window=config.count("sliding_window") if config.has("sliding_window") else None,
        attention_scale=shared["head_dim"] ** -0.5,
        experts=experts,
        chosen_experts=chosen,
    )


def gpt_bigcode(config: Config) -> Decoder:
    """GPT-BigCode (Granite-20B-Code, StarCoder): one key/value head, learned positions, LayerNorm, biases."""
    hidden, heads = config.count("n_embd"), config.count("n_head")
    if hidden % heads:
        raise config.refuse("n_head", f"a divisor of n_embd={hidden}")
    if not config.flag("multi_query", True):
        raise config.refuse("multi_query", "true: one key/value head for all")
    head_dim = hidden // heads
    return Decoder(
        hidden=hidden,
        layers=config.count("n_layer"),
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        vocabulary=config.count("vocab_size"),
        max_positions=config.count("n_positions", 1024),
        norm="layer",
        eps=config.number("layer_norm_epsilon", 1e-5),
        tied=config.flag("tie_word_embeddings", True),
        embedding="transformer.wte",
        positions="transformer.wpe",
        block="transformer.h.{}",
        first_norm="ln_1",
        qkv=("attn.c_attn",),
        output="attn.c_proj",
        second_norm="ln_2",
        last_norm="transformer.ln_f",
        biased=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        attention_scale=head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0,
    )


def _llama_sizes(config: Config) -> dict[str, Any]:
    """The fields of a Decoder that Llama, Phi-3 and Mixtral read from the same keys."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = config.count("head_dim", max(1, hidden // heads))
    return {
        "hidden": hidden,
        "layers": config.count("num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.count("num_key_value_heads", heads),
        "head_dim": head_dim,
        "vocabulary": config.count("vocab_size"),
        "norm": "rms",
        "tied": config.flag("tie_word_embeddings", False),
        "rope": rope_angles(config, head_dim),
    }


# By model_type, as config.json has it.
FAMILIES = {
    "llama": llama,
    "mistral": llama,
    "mixtral": mixtral,
    "qwen2": llama,
    "granite": llama,
    "gpt_bigcode": gpt_bigcode,
    "phi3": phi3,
}
