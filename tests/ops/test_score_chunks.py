"""Chunks of attention's scores: every query once, with all keys that it sees, within the bytes allowed."""

import numpy as np
import pytest

from cutpq.ops import score_chunks
from cutpq.ops.score_chunks import CHUNK_ROWS, SCORE_BYTES, chunks

PROMPT = np.arange(3000)[None]
RAGGED = np.array([[500, 501, 502, 503], [70, -1, -1, -1], [90, 91, -1, -1]])
CASES = {  # positions, pairs, rep, window, how many chunks
    "one_query": (np.array([[4]]), 1, 1, None, 1),
    "decode": (np.array([[4095], [17]]), 64, 4, None, 1),
    "decode_of_more_than_fits": (np.full((64, 1), 100_000), 512, 8, None, 52),
    "prompt": (PROMPT, 1, 1, None, 2),
    "prompt_of_many_heads": (PROMPT, 32, 1, None, 6 * 7),
    "prompt_of_one_key_head": (PROMPT, 1, 48, None, 52),
    "window": (PROMPT, 4, 2, 100, 9),
    "ragged": (RAGGED, 6, 2, None, 1),
    "ragged_window": (RAGGED, 6, 2, 30, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_chunks_hold_every_query_once_and_the_keys_it_sees(name) -> None:
    positions, pairs, rep, window, number = CASES[name]
    made = list(chunks(positions, pairs, rep, window))
    times = np.zeros((pairs, positions.shape[1]), int)
    for chunk in made:
        times[chunk.pairs, chunk.queries] += 1
        own = positions[:, chunk.queries]
        last = own.max()
        first = 0 if window is None else max(0, own[own >= 0].min() - window + 1)
        assert 0 <= first - chunk.keys.start < 8
        assert 0 < chunk.keys.stop - last <= 8
        assert chunk.keys.start % 8 == chunk.keys.stop % 8 == 0
        pairs_here, queries = times[chunk.pairs, chunk.queries].shape
        shape = chunk.shape(rep)
        assert shape == (pairs_here, queries * rep, chunk.keys.stop - chunk.keys.start)
        assert 4 * np.prod(shape) <= SCORE_BYTES
    assert (times == 1).all()
    assert len(made) == number


def test_fewer_heads_rather_than_fewer_rows() -> None:
    first = next(chunks(PROMPT, 32, 4, None))
    assert first.shape(4)[1] == CHUNK_ROWS


def test_a_query_that_does_not_fit_is_a_chunk_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(score_chunks, "SCORE_BYTES", 1000)
    made = list(chunks(np.array([[300, 301]]), 3, 2, None))
    assert [chunk.shape(2)[:2] for chunk in made] == [(1, 2)] * 6
