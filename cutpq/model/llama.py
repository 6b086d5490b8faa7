"""Llama 2 and 3, Mistral, Qwen2 and Granite 3: one shape, with biases here and multipliers there."""

from __future__ import annotations

from .decoder import Config, Decoder, rope_angles

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def read(config: Config) -> Decoder:
    """The Decoder of a config.json whose model_type is llama, mistral, qwen2 or granite."""
    family = config.word("model_type", "llama")
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = config.count("head_dim", max(1, hidden // heads))
    biased: tuple[str, ...] = _ATTENTION if family == "qwen2" else ()
    if config.flag("attention_bias", False):
        biased = (*_ATTENTION, "self_attn.o_proj")
    if config.flag("mlp_bias", False):
        biased += _MLP
    if config.flag("use_sliding_window", False):
        raise config.refuse("use_sliding_window", "false")
    return Decoder(
        hidden=hidden,
        layers=config.count("num_hidden_layers"),
        heads=heads,
        kv_heads=config.count("num_key_value_heads", heads),
        head_dim=head_dim,
        vocabulary=config.count("vocab_size"),
        max_positions=config.count("max_position_embeddings", 2048),
        norm="rms",
        eps=config.number("rms_norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings", False),
        rope=rope_angles(config, head_dim),
        window=config.count("sliding_window") if family == "mistral" and config.has("sliding_window") else None,
        biased=biased,
        attention_scale=config.number("attention_multiplier", 1.0 if family == "granite" else head_dim**-0.5),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logits_scale=1 / config.number("logits_scaling", 1.0),
    )
