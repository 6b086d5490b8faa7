"""A visit to a GPU in one command: tests, recordings, ceilings and benches, into one folder.

    python bench/on_gpu.py [--out DIR]     eight minutes at most on one GPU; needs CuPy, NVRTC and mpi4py
    python bench/on_gpu.py --sanitize      compute-sanitizer over small shapes of every kernel instead
    python bench/on_gpu.py --rehearse      small sizes and no end of time: on the software device (softgpu/)
    python bench/on_gpu.py --dry-run       what it would run

Each step is a process of its own with a time limit. Its output and exit status are on disk when it ends, so that what
comes later cannot harm it; summary.md is rewritten after every step. What fails stops nothing. The same command again
goes on: steps that were ok in DIR are not run twice. Exit status 1 if a step failed, 2 without a GPU.

Kernels can be compiled beforehand, on a machine without a GPU: `python bench/kernels.py --arch sm_90a` fills
CUTPQ_CACHE_DIR, which is then carried along. compute-sanitizer comes with CUDA, or with the wheel
nvidia-cuda-sanitizer-api (CUDA 12: nvidia-cuda-sanitizer-api-cu12): where it is missing, its steps say so.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.gpu_clock import NoGpu, gpu_module
from harness.report import header

from cutpq.ranks.alone import SelfCommunicator

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 470.0
NO_END_S = 3600.0  # for a step of a rehearsal
PYTHON = sys.executable

# Each runs in its own process: a kernel that reads out of bounds destroys the CUDA context for the tests after it.
TESTS = {
    "small-kernels": (
        [
            f"tests/simt/test_{name}.py"
            for name in ("small_kernels", "residual_norm", "round_rows", "prefetch", "dependent_launch")
        ],
        70,
    ),
    "gemm-kernel": (["tests/simt/test_gemm_kernel.py"], 150),
    "codec-kernels": (["tests/simt/test_codec_kernels.py"], 120),
    "attention": (["tests/simt/test_attention_kernels.py", "tests/simt/test_decode_attention.py"], 75),
    "peer-kernels": (["tests/simt/test_all_reduce_kernels.py", "tests/simt/test_comm_ipc.py"], 75),
    "layers": (["tests", "--ignore=tests/simt", "--ignore=tests/test_gpu.py"], 150),
    "graphs": (["tests/test_gpu.py"], 60),
}

# pytest -k: small shapes that reach every kernel and every path through it.
SANITIZED = (
    "rmsnorm or activation or softmax or rotate_qkv or kind_of_groups or gated or ragged or fused_end or any_number"
)


@dataclass(frozen=True)
class Step:
    """One process: its command, from the repository's root, and its longest time in seconds.

    keeps        files that it writes elsewhere, as a pattern from the root, to be copied beside its output
    environment  variables and their values, beside those of this process
    rehearsal    the command for the software device; None for the same, empty where only a GPU has an answer
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    keeps: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    rehearsal: tuple[str, ...] | None = None

    @property
    def shown(self) -> str:
        """The command as one would type it from the repository's root."""
        words = ["python" if part == PYTHON else part.removeprefix(f"{ROOT}/") for part in self.command]
        return shlex.join([*(f"{name}={value}" for name, value in self.environment), *words])


@dataclass(frozen=True)
class Result:
    """How a step ended: "ok", "failed (status)", "stopped after its time", "no such command", "no time left"."""

    step: Step
    outcome: str
    seconds: float
    last_line: str

    @property
    def ok(self) -> bool:
        """Whether the step ended as it should."""
        return self.outcome == "ok"


def script(name: str, *flags: str) -> tuple[str, ...]:
    """A bench, from the repository's root."""
    return (PYTHON, f"bench/{name}.py", *flags)


def tests(*which: str) -> tuple[str, ...]:
    """The tests that take CuPy arrays, of some files."""
    return (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *which)


def steps(out: Path) -> list[Step]:
    """What a visit is made of: first what is right, then how fast it is."""

    def bench(step: str, name: str, limit_s: float, *flags: str, small: tuple[str, ...] = ("--smoke",)) -> Step:
        written = ("--json", str(out / f"{step}.json"))
        return Step(step, script(name, *flags, *written), limit_s, rehearsal=script(name, *small, *written))

    def ranks(number: int, comm: str, name: str = "mlp") -> Step:
        command = ("mpirun", "-n", str(number), *script(name, "--smoke", "--project", "none"))
        return Step(f"{name}-{number}-{comm}", command, 60, environment=(("CUTPQ_COMM", comm),))

    return [
        Step("nvidia-smi", ("nvidia-smi", "-q", "-d", "CLOCK,MEMORY,POWER,ECC"), 10, rehearsal=()),
        Step("cupy", (PYTHON, "-c", "import cupy; cupy.show_config()"), 15),
        Step("packages", (PYTHON, "-m", "pip", "list", "--format=freeze"), 15),
        # Every configuration on all cores first: no later limit has to hold for a compiler too.
        Step("compile", script("kernels", "--arch", "gpu"), 120, rehearsal=()),
        *(Step(f"tests-{name}", tests(*which), limit_s) for name, (which, limit_s) in TESTS.items()),
        Step("recordings", (PYTHON, "tests/simt/conformance.py"), 20, keeps="tests/recordings/*.npz", rehearsal=()),
        # On one GPU all ranks share it: by host memory, by kernels that meet in it, and NCCL with a single rank.
        *(ranks(number, comm) for comm in ("host", "ipc") for number in (2, 4, 8)),
        ranks(1, "nccl"),
        ranks(1, "nccl", "all_reduce"),
        Step("ceilings", script("ceilings"), 20, rehearsal=script("ceilings", "--smoke")),
        bench("gemm", "gemm", 120, "--all"),
        bench("gemm-8-bits", "gemm", 60, "--bits", "8", small=("--bits", "8", "--smoke")),
        bench("sweep", "gemm", 60, "--sweep", small=("--sweep", "--smoke", "--m", "3,9")),
        bench("codec-kernels", "codec_kernels", 60),
        bench("decode-attention", "decode_attention", 30),
        bench("mlp", "mlp", 45, "--model", "llama-7b", "--project", "none"),
        replace(
            bench("mlp-pdl", "mlp", 45, "--model", "llama-7b", "--project", "none"), environment=(("CUTPQ_PDL", "1"),)
        ),
        bench("all-reduce", "all_reduce", 30, "-b", "1M", "-e", "1M"),
    ]


def sanitizer_steps() -> list[Step]:
    """compute-sanitizer, which takes tens of times as long, over small shapes that reach every kernel."""
    # CuPy probes what a device can do; the refused calls are no errors of ours.
    command = ("compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no", "--tool")
    checked = tests("-x", "tests/simt", "-k", SANITIZED)
    pool_off = (("CUTPQ_TEST_POOL", "0"),)
    limits = {"memcheck": 180, "racecheck": 180, "synccheck": 100}
    return [
        Step(tool, (*command, tool, *checked), limit_s, environment=pool_off, rehearsal=())
        for tool, limit_s in limits.items()
    ]


def rehearsed(step: Step) -> Step:
    """The step for the software device, whose times mean nothing; its default stream does not keep the host waiting."""
    command = step.command if step.rehearsal is None else step.rehearsal
    return replace(step, command=command, limit_s=NO_END_S, environment=(*step.environment, ("SOFTGPU_ASYNC", "1")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run or list the steps; 1 if a step failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    day = datetime.date.today().isoformat()
    default = ROOT / "bench" / "results" / f"GPU-{day}"
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help="default bench/results/GPU-DATE")
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer instead")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the software device")
    parser.add_argument("--dry-run", action="store_true", help="list the steps, run none")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    chosen, budget_s = sanitizer_steps() if args.sanitize else steps(out), BUDGET_S
    if args.rehearse:
        for step in chosen:
            if step.rehearsal == ():
                print(f"{step.name:19} left out: it asks NVIDIA's driver, compiler, tool or hardware")
        chosen, budget_s = [rehearsed(step) for step in chosen if step.rehearsal != ()], NO_END_S
    if args.dry_run:
        for step in chosen:
            print(f"{step.name:19} {step.limit_s:4.0f} s  {step.shown}")
        print(f"# into {out}; all together {budget_s:.0f} s at most, then the same command goes on")
        return 0
    try:
        xp = gpu_module()
    except NoGpu as error:
        print(f"on_gpu.py: a visit {error}; --dry-run shows the steps", file=sys.stderr)
        return 2
    about = header(SelfCommunicator("a visit", xp, int(xp.cuda.runtime.getDevice())))
    results = visit(chosen, out, about, budget_s)
    print(f"# written to {out}")
    return 0 if all(result.ok for result in results) else 1


def visit(steps: Iterable[Step], out: Path, about: Sequence[str] = (), budget_s: float = BUDGET_S) -> list[Result]:
    """Run the steps in order within the budget. Each leaves NUMBER-NAME.txt in `out`, all together summary.md."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget_s
    results: list[Result] = []
    for number, step in enumerate(steps, 1):
        log = out / f"{number:02}-{step.name}.txt"
        results.append(_before(step, log) or run(step, log, end - time.monotonic()))
        (out / "summary.md").write_text(summary(results, about))
        print(f"{step.name:19} {results[-1].seconds:6.1f} s  {results[-1].outcome}", flush=True)
    return results


def _before(step: Step, log: Path) -> Result | None:
    """The result of the same command in an earlier visit, if it was ok."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    found = re.fullmatch(r"\[ok, ([\d.]+) s\]", lines[-1]) if lines else None
    if found is None or lines[0] != f"$ {step.shown}":
        return None
    return Result(step, "ok", float(found[1]), _last_line(lines[1:-1]))


def _last_line(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "")


def run(step: Step, log: Path, left_s: float) -> Result:
    """One step: its command, output, and how it ended, in `log`; never raises for what the step does."""
    limit_s = min(step.limit_s, left_s)
    if limit_s < 1:
        log.write_text(f"$ {step.shown}\n[no time left]\n")
        return Result(step, "no time left", 0.0, "")
    start = time.monotonic()
    with log.open("w") as output:
        output.write(f"$ {step.shown}\n")
        output.flush()
        outcome = _run(step, output.fileno(), limit_s)
        seconds = time.monotonic() - start
    said = log.read_text(errors="replace").splitlines()[1:]
    with log.open("a") as output:
        output.write(f"\n[{outcome}, {seconds:.1f} s]\n")
    if step.keeps:
        for path in sorted(ROOT.glob(step.keeps)):
            shutil.copy(path, log.parent)
    return Result(step, outcome, seconds, _last_line(said))


def _run(step: Step, output: int, limit_s: float) -> str:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = (
        os.environ
        | dict(step.environment)
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    )
    # Find mpirun beside this Python even if its environment is not activated, and compute-sanitizer in its wheel.
    wheels = [path for folder in site.getsitepackages() for path in sorted(Path(folder).glob("nvidia/*/bin"))]
    env["PATH"] = os.pathsep.join([os.path.dirname(PYTHON), env.get("PATH", ""), *map(str, wheels)])
    try:
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=env, start_new_session=True
        )
    except OSError as error:
        return f"no such command: {error}"
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the whole process group: mpirun's ranks too
        process.wait()
        return f"stopped after {limit_s:.0f} s"
    return "ok" if status == 0 else f"failed ({status})"


def summary(results: Sequence[Result], about: Sequence[str]) -> str:
    """A table of what is there so far."""
    rows = [f"| {r.step.name} | {r.outcome} | {r.seconds:.1f} | {r.last_line[:100]} |" for r in results]
    title = ["# A visit to a GPU", "", *(line.removeprefix("# ") + "  " for line in about), ""]
    return "\n".join([*title, "| step | outcome | seconds | last line |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
