"""bench/host_time.py: what a layer launches, counted by the stubs."""

import host_time

import cutpq as cq


def test_a_layer_of_a_decode_step_takes_at_most_twelve_launches() -> None:
    """Nine kernels and two all-reduces; with a codec the sum is encoded, and decoded into residual and norm."""
    with host_time.stubs() as launches:
        plain = host_time.launches_of_a_layer(None, launches)
        coded = host_time.launches_of_a_layer(cq.codec("mxfp4"), launches)
    kernels = {"gemm_w4a16": 4, "rotate_qkv": 1, "decode_attention": 1, "gather_columns": 1}
    assert plain == kernels | {"residual_norm": 2}
    assert coded == kernels | {"encode": 2, "decode_sum_rmsnorm": 2}
    assert sum(plain.values()) + 2 <= 12
