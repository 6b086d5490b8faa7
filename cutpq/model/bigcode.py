"""GPT-BigCode (Granite-20B-Code, StarCoder): one key/value head, learned positions, LayerNorm, biases everywhere."""

from __future__ import annotations

from .decoder import Config, Decoder


def read(config: Config) -> Decoder:
    """The Decoder of a config.json whose model_type is gpt_bigcode."""
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
