"""Which scheme `plan` gives which layer, on the carried checkpoint and on small written ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from make_checkpoint import write_checkpoint

from cutpq.checkpoint.claims import ModuleSpec
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.layers.plan import LayerPlan, across_nodes, plan
from cutpq.weights.schemes import SCHEMES

TINY_LLAMA = Path(__file__).parents[1] / "data" / "tiny-llama"


def planned(folder: Path, tp: int, **options) -> dict[str, LayerPlan]:
    """Plans by the last part of the module's name (of the last layer)."""
    return {p.name.rpartition(".")[2]: p for p in plan(open_checkpoint(folder), tp, **options)}


def test_carried_checkpoint_at_tp_8() -> None:
    plans = plan(open_checkpoint(TINY_LLAMA), 8)
    chosen: dict[str, set[str]] = {}
    for p in plans:
        chosen.setdefault(p.name.rpartition(".")[2], set()).add(p.chosen)
    assert len(plans) == 4 * 7
    columns = {name: {"none"} for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")}
    assert chosen == columns | {"down_proj": {"tp-aware"}, "o_proj": {"local"}}  # o_proj has fewer groups than ranks


def test_down_proj_lists_all_schemes_with_costs() -> None:
    """H=1024 in 8 groups on 4 ranks: 256 rows and 2 groups each, or, in disk order, the scales of all 8."""
    down = planned(TINY_LLAMA, 4, M=16)["down_proj"]
    assert (down.role, down.act_order) == ("row", True)
    assert (down.K, down.N, down.bits, down.group_size) == (1024, 256, 4, 128)
    assert tuple(o.scheme for o in down.options) == SCHEMES
    cost = {o.scheme: o for o in down.options}
    assert cost["tp-aware"].read_bytes == 256 * 256 // 2 + 2 * 256 * 2
    assert cost["local"].read_bytes == 256 * 256 // 2 + 8 * 256 * 2 + 256 * 4
    all_reduce = 2 * 3 * 16 * 256 * 2 // 4
    assert cost["tp-aware"].sent_bytes == cost["local"].sent_bytes == all_reduce
    assert cost["naive"].sent_bytes == all_reduce + 3 * 16 * 1024 * 2 // 4
    assert cost["all-to-all"].sent_bytes == all_reduce + 3 * 16 * 256 * 2 // 4
    assert down.best.time_us == min(o.time_us for o in down.options)
    assert f"{cost['naive'].sent_bytes - all_reduce} bytes more" in down.reason
    assert "gate_proj and up_proj" in down.reason


def test_attention_output_cannot_be_folded() -> None:
    o_proj = planned(TINY_LLAMA, 2)["o_proj"]
    assert o_proj.act_order
    assert "heads" in o_proj.refused["tp-aware"]
    assert set(o_proj.refused) == {"tp-aware"}
    times = {o.scheme: o.time_us for o in o_proj.options}
    assert o_proj.chosen == min(("local", "all-to-all"), key=times.__getitem__)


class OneModule:
    """Stands for a checkpoint with nothing but Llama-70B's o_proj, in an order of its own."""

    folder = Path("one-module")
    config: ClassVar[dict] = {}
    name = "model.layers.0.self_attn.o_proj"

    def __init__(self, group_size: int):
        self.group_size = group_size

    def weights(self) -> list[str]:
        return [self.name]

    def tensors(self) -> list[str]:
        return []

    def shape(self, name: str) -> tuple[int, int]:
        return 8192, 8192

    def spec(self, name: str) -> ModuleSpec:
        return ModuleSpec("gptq", "gptq", 4, self.group_size, True, True)

    def g_idx(self, name: str) -> np.ndarray:
        return (np.random.default_rng(0).permutation(8192) // self.group_size).astype(np.int32)


@pytest.mark.parametrize(("group_size", "chosen"), [(128, "local"), (16, "all-to-all")])
def test_attention_output_goes_by_cost(group_size: int, chosen: str) -> None:
    """One token on 8 L4: the scales of all groups take 4 us to read at g128 and 29 us at g16, an exchange 14 us."""
    (o_proj,) = plan(OneModule(group_size), 8, link="l4-pcie", M=1)
    assert o_proj.chosen == chosen
    times = {o.scheme: o.time_us for o in o_proj.options}
    assert o_proj.reason.startswith(f"predicted {times[chosen]:.1f} us on l4-pcie")


def test_more_ranks_than_groups_leaves_what_cuts_anywhere() -> None:
    """o_proj has 4 groups of 128, down_proj 8; on 8 ranks only down_proj can have whole groups, on 16 neither."""
    on_8, on_16 = planned(TINY_LLAMA, 8), planned(TINY_LLAMA, 16)
    assert set(on_8["o_proj"].refused) == {"naive", "all-to-all", "tp-aware"}
    assert "tp=8 is more than 4 groups" in on_8["o_proj"].refused["all-to-all"]
    assert on_8["o_proj"].chosen == "local"
    assert [o.scheme for o in on_16["down_proj"].options] == ["unordered", "local"]
    assert on_16["down_proj"].chosen == "local"
    assert "tp=16 is more than 8 groups" in on_16["down_proj"].reason


def test_contiguous_groups_need_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, desc_act=False)
    plans = planned(tmp_path, 2)
    assert {p.chosen for p in plans.values()} == {"none"}
    assert {p.act_order for p in plans.values()} == {False}
    assert [o.scheme for o in plans["down_proj"].options] == ["none"]
    assert plans["down_proj"].best.sent_bytes > 0, "a row-parallel layer still ends in an all_reduce"
    assert plans["up_proj"].best.sent_bytes == 0


def test_one_group_is_contiguous_on_any_number_of_ranks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, group_size=-1)
    down = planned(tmp_path, 8)["down_proj"]
    assert (down.act_order, down.chosen, down.group_size) == (False, "none", 128)


def test_non_gated_mlp_is_folded_into_its_one_first_layer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family="bigcode")
    plans = {p.name: p for p in plan(open_checkpoint(tmp_path), 2)}
    second = next(p for name, p in plans.items() if name.endswith("mlp.c_proj"))
    output = next(p for name, p in plans.items() if name.endswith("attn.c_proj"))
    assert second.chosen == "tp-aware"
    assert "columns of c_fc are" in second.reason
    assert output.chosen in ("local", "all-to-all")


def test_experts_are_planned_one_by_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family="mixtral", experts=3)
    downs = [p for p in plan(open_checkpoint(tmp_path), 2) if p.name.endswith(".w2")]
    assert [p.chosen for p in downs] == ["tp-aware"] * 3


def test_a_column_layer_says_that_its_order_is_local() -> None:
    q_proj = planned(TINY_LLAMA, 4)["q_proj"]
    assert (q_proj.role, q_proj.act_order) == ("column", True)
    assert "gather of x" in q_proj.reason
    assert q_proj.best.read_bytes == 256 * 512 // 4 // 2 + 2 * 512 // 4 * 2


def test_bad_arguments_name_the_choice() -> None:
    ckpt = open_checkpoint(TINY_LLAMA)
    with pytest.raises(ValueError, match="'infiniband' is not one of a100-nvlink"):
        plan(ckpt, 2, link="infiniband")
    with pytest.raises(ValueError, match="tp=0 must be at least 1"):
        plan(ckpt, 0)
    with pytest.raises(ValueError, match="M=0 must be at least 1"):
        plan(ckpt, 2, M=0)


def test_ranks_of_several_nodes_pay_for_their_cable():
    ckpt = open_checkpoint(TINY_LLAMA)
    one = {layer.name: layer.best.time_us for layer in plan(ckpt, 8, "h100-nvlink")}
    two = {layer.name: layer.best.time_us for layer in plan(ckpt, 8, "h100-nvlink", between="eth-25g", per_node=4)}
    rows = [layer.name for layer in plan(ckpt, 8, "h100-nvlink") if layer.role == "row"]
    assert rows
    assert all(two[name] > one[name] if name in rows else two[name] == one[name] for name in one)
    same = plan(ckpt, 4, "h100-nvlink", between="eth-25g", per_node=4)
    assert [layer.best for layer in same] == [layer.best for layer in plan(ckpt, 4, "h100-nvlink")]


def test_a_mistake_over_nodes_is_called_one_and_has_a_price():
    ckpt = open_checkpoint(TINY_LLAMA)

    def total(tp):
        return sum(layer.best.time_us for layer in plan(ckpt, tp, "h100-nvlink", 16, "eth-25g", 4))

    said = across_nodes(ckpt, 8, "h100-nvlink", 16, "eth-25g", 4)
    assert f"{total(8):.0f} us in all layers, {total(4):.0f} us on 4 ranks of one node" in said
    assert f"a mistake, which costs {total(8) - total(4):.0f} us of a call" in said
    assert (
        across_nodes(ckpt, 4, "h100-nvlink", 16, "eth-25g", 4) == "tensor parallelism stays inside one node of 4 ranks"
    )


def test_an_unknown_cable_is_refused():
    with pytest.raises(ValueError, match="between 'string' is not one of ib-ndr400, "):
        plan(open_checkpoint(TINY_LLAMA), 8, "h100-nvlink", between="string")
    with pytest.raises(ValueError, match="per_node=0 must be at least 1"):
        plan(open_checkpoint(TINY_LLAMA), 8, "h100-nvlink", between="tcp-1g", per_node=0)
