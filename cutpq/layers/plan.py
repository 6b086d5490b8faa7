"""Which scheme for which layer of a checkpoint: what is possible on `tp` ranks, what it costs, what to take and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..array import ceil_div
from ..checkpoint.folder import Checkpoint
from ..checkpoint.mlp_names import mlps, module_role
from ..cost.gpus import GPUS, Gpu, WeightFormat
from ..cost.links import LINKS, Link
from ..cost.mlp import LayerCost, column_parallel, row_parallel
from ..cost.nodes import CABLES, Network
from ..weights.schemes import GROUP_ALIGNED, SCHEMES, count_groups, refusals
from ..weights.shard import default_bounds
from ..weights.weight import is_ordered

# Where tp-aware is impossible the cheaper of these is chosen. The other two are listed, never chosen: `naive` sends tp
# times the bytes of `all-to-all`, and `unordered` makes the kernel look up a row of scales for every row of weights.
_WITHOUT_TP_AWARE = ("local", "all-to-all")


# The link of the machine that most published measurements of tensor parallelism were made on.
DEFAULT_LINK = "a100-nvlink"


@dataclass(frozen=True)
class Option:
    """A scheme that is possible for a layer, or "none" where act-order costs no communication.

    read_bytes  that the busiest rank reads of the weight: codes, scales, zeros, index
    sent_bytes  that it sends per call, the all_reduce of a row-parallel layer included
    time_us     predicted for one call
    """

    scheme: str
    read_bytes: int
    sent_bytes: int
    time_us: float


@dataclass(frozen=True)
class LayerPlan:
    """What to do with one quantized module.

    role       "column" (output features are cut), "row" (input features) or "other" (whole on every rank)
    act_order  whether rows of one group are scattered
    options    schemes that are possible, in the order of cutpq.SCHEMES
    refused    schemes that are not: scheme -> why
    chosen     a scheme, or "none"
    reason     for the choice, a sentence
    """

    name: str
    role: str
    act_order: bool
    K: int
    N: int
    bits: int
    group_size: int
    options: tuple[Option, ...]
    refused: Mapping[str, str]
    chosen: str
    reason: str

    @property
    def best(self) -> Option:
        """The chosen option with its costs."""
        return next(o for o in self.options if o.scheme == self.chosen)


def plan(
    ckpt: Checkpoint, tp: int, link: str = DEFAULT_LINK, M: int = 16, between: str | None = None, per_node: int = 8
) -> list[LayerPlan]:
    """For each quantized module of the checkpoint: the schemes possible on `tp` ranks, their costs, and a choice.

    link  one of cost.LINKS, which also names the GPU
    M     tokens of a call
    between, per_node  where there are more than per_node ranks, what joins their nodes: one of cost.nodes.CABLES

    The second layer of an MLP gets `tp-aware`. Another row-parallel layer (attention's output, whose order crosses
    heads) gets `local` or `all-to-all`, whichever is predicted to be faster. What needs nothing gets "none".
    Reads g_idx of each module, and no weights. Costs are those of the model in cutpq/cost, not measurements.
    Raises ValueError for an unknown link or cable, and for tp, M or per_node below 1.
    """
    if link not in LINKS:
        raise ValueError(f"link {link!r} is not one of {', '.join(LINKS)}")
    if between is not None and between not in CABLES:
        raise ValueError(f"between {between!r} is not one of {', '.join(CABLES)}")
    for what, value in (("tp", tp), ("M", M), ("per_node", per_node)):
        if value < 1:
            raise ValueError(f"{what}={value} must be at least 1")
    joined = LINKS[link] if between is None else Network.of(LINKS[link], CABLES[between], per_node)
    machine = _Machine(tp, M, joined)
    folds = {m.down: m.first for m in mlps(ckpt)}
    return [_plan_layer(ckpt, name, folds, machine) for name in ckpt.weights()]


def across_nodes(ckpt: Checkpoint, tp: int, link: str, M: int, between: str, per_node: int) -> str:
    """What tensor parallelism over several nodes gains or costs beside that of one node, in a sentence.

    Arguments and errors are those of `plan`.
    """
    own, every = min(tp, per_node), (link, M, between, per_node)
    one, all_nodes = (sum(layer.best.time_us for layer in plan(ckpt, n, *every)) for n in (own, tp))
    nodes = ceil_div(tp, per_node)
    if nodes == 1:
        return f"tensor parallelism stays inside one node of {per_node} ranks"
    if all_nodes >= one:
        verdict = (
            f"a mistake, which costs {all_nodes - one:.0f} us of a call: give the nodes replicas or layers instead"
        )
    else:
        verdict = f"a call is {one / all_nodes:.2f} times quicker on {tp / own:.3g} times the ranks"
    return (
        f"tensor parallelism over {nodes} nodes, sums not compressed: {all_nodes:.0f} us in all layers, "
        f"{one:.0f} us on {own} ranks of one node; {verdict}"
    )


@dataclass(frozen=True)
class _Machine:
    tp: int
    M: int
    link: Link

    @property
    def gpu(self) -> Gpu:
        """The GPU that such a link mostly joins."""
        return GPUS[self.link.gpu]


def _plan_layer(ckpt: Checkpoint, name: str, folds: Mapping[str, tuple[str, ...]], machine: _Machine) -> LayerPlan:
    K, N = ckpt.shape(name)
    spec = ckpt.spec(name)
    form = WeightFormat(spec.bits, K if spec.group_size == -1 else spec.group_size, spec.sym)
    g_idx = ckpt.g_idx(name)
    role = module_role(name)
    act_order = not is_ordered(g_idx)
    refused: dict[str, str] = {}
    if role == "row" and act_order:
        refused = _refuse(g_idx, machine.tp, foldable=name in folds)
        options = [
            _option(scheme, _row_cost(scheme, g_idx, N, form, machine)) for scheme in SCHEMES if scheme not in refused
        ]
        chosen, reason = _choose(options, refused, folds.get(name, ()), machine)
    else:
        cost = _row_cost("tp-aware", g_idx, N, form, machine) if role == "row" else _own_cost(role, K, N, form, machine)
        options = [_option("none", cost)]
        chosen, reason = "none", _why_none(role, act_order)
    return LayerPlan(
        name=name,
        role=role,
        act_order=act_order,
        K=K,
        N=N,
        bits=form.bits,
        group_size=form.group_size,
        options=tuple(options),
        refused=refused,
        chosen=chosen,
        reason=reason,
    )


def _refuse(g_idx: np.ndarray, tp: int, foldable: bool) -> dict[str, str]:
    refused = refusals(count_groups(g_idx), tp)
    if not foldable:
        refused["tp-aware"] = (
            "no layer before can produce features in this order: attention lies between, and its heads may not mix"
        )
    return refused


def _choose(
    options: list[Option], refused: Mapping[str, str], first: tuple[str, ...], machine: _Machine
) -> tuple[str, str]:
    if "tp-aware" not in refused:
        others = " and ".join(name.rpartition(".")[2] for name in first)
        naive = next(o for o in options if o.scheme == "naive")
        free = next(o for o in options if o.scheme == "tp-aware")
        return "tp-aware", (
            f"the columns of {others} are permuted offline, and nothing is left to do at run time; naive would send "
            f"{naive.sent_bytes - free.sent_bytes} bytes more and take {naive.time_us - free.time_us:.1f} us longer"
        )
    candidates = sorted((o for o in options if o.scheme in _WITHOUT_TP_AWARE), key=lambda o: o.time_us)
    best, rest = candidates[0], candidates[1:]
    if not rest:
        return best.scheme, f"all-to-all {refused['all-to-all']}"
    return best.scheme, (
        f"predicted {best.time_us:.1f} us on {machine.link.name}, {rest[0].scheme} {rest[0].time_us:.1f} us; "
        f"tp-aware is impossible: {refused['tp-aware']}"
    )


def _why_none(role: str, act_order: bool) -> str:
    if role == "other":
        return "not cut: every rank holds all of it"
    if not act_order:
        return "groups are contiguous"
    return "its order is a gather of x, which every rank has: no communication, whatever the scheme of the next layer"


def _option(scheme: str, cost: LayerCost) -> Option:
    return Option(scheme, cost.read_bytes, cost.sent_bytes, cost.total_us)


def _own_cost(role: str, K: int, N: int, form: WeightFormat, machine: _Machine) -> LayerCost:
    columns = ceil_div(N, machine.tp) if role == "column" else N
    return column_parallel(machine.M, K, columns, form, machine.gpu)


def _row_cost(scheme: str, g_idx: np.ndarray, N: int, form: WeightFormat, machine: _Machine) -> LayerCost:
    """Cost on a rank with the most rows and the most groups that any rank has."""
    tp = machine.tp
    cut = default_bounds(g_idx, tp)
    rows_in_order = np.sort(g_idx) if scheme in GROUP_ALIGNED else g_idx
    groups = max(count_groups(part) for part in np.split(rows_in_order, cut[1:-1]))
    rows = int(np.diff(cut).max())
    return row_parallel(scheme, machine.M, rows, N, tp, form, machine.gpu, machine.link, groups)
