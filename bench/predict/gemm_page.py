"""The tables of bench/results/predicted_gemm.md, as Markdown: `python bench/gemm.py --predict --page` prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from models.gemm_layers import Layer, layers
from models.shapes import MODELS

from predict import calibrate
from predict.gemm import MACHINES, Machine, library_us, pdl_gain_us, predict, predict_library

MODEL, TPS = "llama-70b", (1, 2, 4, 8)


def page() -> Iterator[str]:
    """Line by line, since it takes a minute or more."""
    yield from _section("Parts", _parts())
    yield from _section("Programmatic dependent launch", _dependent_launch())
    yield from _section("More tokens", _more_tokens())
    yield from _section("Orders", _orders())
    yield from _section("All models", _all_models())
    yield from _section("8 bits", _eight_bits())
    yield from _section("Against published times", _published())
    yield from _section("How much hangs on the guesses", _guesses())


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield from lines
    yield ""


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*titles: str) -> list[str]:
    return [_row(*titles), f"|{'---|' * len(titles)}"]


def _share(layer: Layer, M: int, machine: Machine) -> float:
    p = predict(layer, M, "tp-aware", machine)
    return p.read_bytes / p.time_us / 1e3 / machine.copy_gb_s


def _ratio(layer: Layer, M: int, machine: Machine) -> float:
    return library_us(M, layer.K, layer.N, machine) / predict(layer, M, "tp-aware", machine).time_us


def _by_layer(tps: Sequence[int], bits: int = 4) -> list[Layer]:
    return sorted(layers((MODEL,), tuple(tps), bits), key=lambda layer: (layer.layer == "down", layer.tp))


def _parts() -> Iterator[str]:
    what = ("memory", "issue slots", "integer", "L2", "tensor")
    titles = ("memory", "issue", "integer", "L2", "tensor")
    yield from _head("machine", "layer", "tp", "M", "predicted_us", *titles, "tail", "fixed", "share", "ratio", "bound")
    for machine in MACHINES.values():
        for layer in _by_layer((1, 2, 8)):
            for M in (1, 16, 64):
                p = predict(layer, M, "tp-aware", machine)
                times = [f"{us:.1f}" for us in (p.time_us, *(p.work[name] for name in what), p.tail_us, p.fixed_us)]
                rates = f"{_share(layer, M, machine):.2f}", f"{_ratio(layer, M, machine):.2f}"
                yield _row(machine.name, layer.layer, layer.tp, M, *times, *rates, p.bound)


def _dependent_launch() -> Iterator[str]:
    """us of the products of an MLP at M = 1: launched in order, and with CUTPQ_PDL=1."""
    yield from _head("machine", "tp", "gate_up + down, in order", "with PDL, at best", "saved")
    for machine in MACHINES.values():
        for tp in TPS:
            in_order = sum(predict(layer, 1, "tp-aware", machine).time_us for layer in layers((MODEL,), (tp,)))
            saved = len(layers((MODEL,), (tp,))) * pdl_gain_us(machine)
            yield _row(machine.name, tp, *(f"{us:.1f}" for us in (in_order, in_order - saved, saved)))


def _more_tokens() -> Iterator[str]:
    tokens = (128, 256, 512, 1024, 4096)
    yield from _head("machine", "layer", "tp", *(f"M = {M}" if tokens[0] == M else str(M) for M in tokens))
    for machine in MACHINES.values():
        for layer in _by_layer((1, 8)):
            cells = [
                f"{predict(layer, M, 'tp-aware', machine).time_us:.0f} ({_ratio(layer, M, machine):.2f})"
                for M in tokens
            ]
            yield _row(machine.name, layer.layer, layer.tp, *cells)


def _orders() -> Iterator[str]:
    schemes = ("tp-aware", "local", "unordered")
    yield from _head("machine", "tp", *schemes, "local / tp-aware", "unordered / tp-aware")
    for machine in MACHINES.values():
        for layer in layers((MODEL,), TPS):
            if layer.layer == "down":
                sorted_us, *others = (predict(layer, 1, scheme, machine).time_us for scheme in schemes)
                times = [f"{us:.1f}" for us in (sorted_us, *others)]
                yield _row(machine.name, layer.tp, *times, *(f"{us / sorted_us:.2f}" for us in others))


def _all_models() -> Iterator[str]:
    names = [name.upper() for name in MACHINES]
    yield from _head("model", "tp", *(f"{n} {what}" for n in names for what in ("share, M = 1", "ratio, M = 64")))
    for model in MODELS:
        for tp in TPS:
            both = layers((model,), (tp,))
            cells = [
                ", ".join(f"{figure(layer, M, machine):.2f}" for layer in both)
                for machine in MACHINES.values()
                for figure, M in ((_share, 1), (_ratio, 64))
            ]
            yield _row(model, tp, *cells)


def _eight_bits() -> Iterator[str]:
    """The kernel, and dequantizing first, which is what other widths than 4 bits would take without it."""
    yield from _head("machine", "layer", "tp", "M", "predicted_us", "share", "bound", "dequantize first, us", "quicker")
    for machine in MACHINES.values():
        for layer in _by_layer((1, 8), bits=8):
            for M in (1, 16, 64):
                p, first = (way(layer, M, "tp-aware", machine) for way in (predict, predict_library))
                times = f"{p.time_us:.1f}", f"{_share(layer, M, machine):.2f}", p.bound, f"{first.time_us:.1f}"
                yield _row(machine.name, layer.layer, layer.tp, M, *times, f"{first.time_us / p.time_us:.1f}x")


def _published() -> Iterator[str]:
    tokens = (1, 16, 32, 64, 128, 256, 512, 1024, 4096)
    yield from _head("gpu", "kernel", *(f"M = {M}" if M == 1 else str(M) for M in tokens))
    errors = {(row["gpu"], row["kernel"], row["M"]): row["error"] for row in calibrate.rows()}
    for gpu, kernel in dict.fromkeys((gpu, kernel) for gpu, kernel, _ in errors):
        yield _row(gpu, kernel, *(f"{100 * errors[gpu, kernel, M]:+.0f} %" for M in tokens))


def _guesses() -> Iterator[str]:
    """Share of a copy on an H200 at M = 1, `gate_up` and `down`, as one constant changes."""
    h200 = MACHINES["h200"]
    yield from _changes("slots used", (0.4, 0.5, 0.6, 0.75, 0.9), lambda v: replace(h200, issue_fraction=v))
    yield from _changes("slots used by one warp", (0.1, 0.15, 0.22, 0.3), lambda v: replace(h200, warp_fraction=v))
    yield from _changes("a load from memory, us", (0.4, 0.7, 1.0, 1.5), lambda v: replace(h200, latency_us=v))


def _changes(what: str, values: Sequence[float], change: Callable[[float], Machine]) -> Iterator[str]:
    yield from _head(what, *map(str, values))
    for tp in (1, 2, 8):
        both = layers((MODEL,), (tp,))
        yield _row(
            f"share at TP {tp}", *(", ".join(f"{_share(layer, 1, change(v)):.2f}" for layer in both) for v in values)
        )
    yield ""
