"""Phi-3: a Llama whose q, k and v are one module, and gate and up another."""

from __future__ import annotations

from .decoder import Config, Decoder, rope_angles


def read(config: Config) -> Decoder:
    """The Decoder of a config.json whose model_type is phi3."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = config.count("head_dim", max(1, hidden // heads))
    return Decoder(
        hidden=hidden,
        layers=config.count("num_hidden_layers"),
        heads=heads,
        kv_heads=config.count("num_key_value_heads", heads),
        head_dim=head_dim,
        vocabulary=config.count("vocab_size"),
        max_positions=config.count("max_position_embeddings", 4096),
        norm="rms",
        eps=config.number("rms_norm_eps", 1e-5),
        tied=config.flag("tie_word_embeddings", False),
        qkv=("self_attn.qkv_proj",),
        rope=rope_angles(config, head_dim),
        window=config.count("sliding_window") if config.has("sliding_window") else None,
        attention_scale=head_dim**-0.5,
    )
