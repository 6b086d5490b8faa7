"""Greedy texts of the carried model by foreign code: transformers on torch, its weights dequantized, in float32.

python tests/helpers/greedy.py          writes the texts of the first prompts to tests/data/greedy.json
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import cutpq as cq

DATA = Path(__file__).resolve().parents[1] / "data"
TINY_LLAMA = DATA / "tiny-llama"
KEPT = DATA / "greedy.json"
PROMPTS, KEPT_PROMPTS, LENGTH, NEW = 20, 3, 12, 64


def prompts() -> list[list[int]]:
    """Pieces of the held-out text, far from each other."""
    tokens = np.load(TINY_LLAMA / "eval_tokens.npy")
    starts = np.linspace(0, len(tokens) - LENGTH, PROMPTS).astype(int)
    return [tokens[start : start + LENGTH].tolist() for start in starts]


def write_dequantized(folder: Path) -> None:
    """The carried model with its float16 weights written out, for those who cannot read GPTQ."""
    ckpt = cq.open_checkpoint(TINY_LLAMA)
    quantized = ckpt.weights()
    stored = load_file(TINY_LLAMA / "model.safetensors")
    tensors = {name: a for name, a in stored.items() if name.rpartition(".")[0] not in quantized}
    for name in quantized:
        tensors[f"{name}.weight"] = np.ascontiguousarray(cq.dequantize(ckpt.weight(name)).T)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((TINY_LLAMA / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def texts_of_transformers(some: list[list[int]]) -> list[list[int]]:
    """The NEW likeliest tokens after each prompt, one prompt at a time, past any end of text."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        write_dequantized(Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    texts = []
    for prompt in some:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None
            )
        texts.append(out[0, len(prompt) :].tolist())
    return texts


def main() -> None:
    """Write KEPT, with how it came to be."""
    import torch
    import transformers

    some = prompts()[:KEPT_PROMPTS]
    how = (
        f"python tests/helpers/greedy.py: transformers {transformers.__version__} on torch {torch.__version__}, "
        "weights dequantized to float16, float32 arithmetic, greedy, no end of text"
    )
    kept = {"how": how, "prompts": some, "tokens": texts_of_transformers(some)}
    temporary = KEPT.with_name(f".{KEPT.name}.{os.getpid()}")
    temporary.write_text(json.dumps(kept) + "\n")
    temporary.replace(KEPT)


if __name__ == "__main__":
    main()
