"""A whole model: prefill of two prompts of different lengths, then decode, one token of each at a time.

    python examples/model.py [DIR]
    mpirun -n 4 python examples/model.py [DIR]     the same tokens

Start it in the repository's folder.
"""

import sys

import cutpq as cq

folder = sys.argv[1] if len(sys.argv) > 1 else "tests/data/tiny-llama"
comm = cq.init()
model = cq.load_model(folder, comm)  # float16; codec="mxfp4" compresses the two all-reduces of every block
prompts = [[0, 17, 5, 84, 301], [0, 4]]
cache = model.new_cache(batch=len(prompts), length=64)

logits = model(prompts, cache, last_only=True)  # prefill: (2, vocabulary), the same on every rank
made = [[token] for token in logits.argmax(axis=1).tolist()]
for _ in range(15):
    logits = model([row[-1:] for row in made], cache)  # decode: the cache holds what came before
    for row, token in zip(made, logits.argmax(axis=1).tolist(), strict=True):
        row.append(token)

if comm.rank == 0:
    for prompt, row in zip(prompts, made, strict=True):
        print(f"{prompt} -> {row}")
