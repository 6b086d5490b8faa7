"""A whole model: prefill of two prompts of different lengths, then decode, by hand; then the same by cq.generate.

    python examples/model.py [DIR]
    mpirun -n 4 python examples/model.py [DIR]     the same tokens

Start it in the repository's folder.
"""

import sys

import cutpq as cq
from cutpq.model.text import Tokenizer

folder = sys.argv[1] if len(sys.argv) > 1 else "tests/data/tiny-llama"
comm = cq.init()
model = cq.load_model(folder, comm, dtype="float32")  # codec="mxfp4" compresses the two all-reduces of every block
tokenizer = Tokenizer(folder)
prompts = [tokenizer.encode(text) for text in ("To create a table, use", "The reason is")]

cache = model.new_cache(batch=len(prompts), length=64)
logits = model(prompts, cache, last_only=True)  # prefill: (2, vocabulary), the same on every rank
made = [[token] for token in logits.argmax(axis=1).tolist()]
for _ in range(15):
    logits = model.decode([row[-1] for row in made], cache)  # the cache holds what came before
    for row, token in zip(made, logits.argmax(axis=1).tolist(), strict=True):
        row.append(token)

steps = list(cq.generate(model, prompts, max_tokens=16, eos=()))  # greedy unless a cq.Sampler is given
assert made == [[step.tokens[sequence] for step in steps] for sequence in range(2)]

if comm.rank == 0:
    for prompt, row in zip(prompts, made, strict=True):
        print(f"{tokenizer.decode(prompt)!r} -> {tokenizer.decode(row)!r}")
