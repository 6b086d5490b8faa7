"""A visit to a GPU in one command: tests, recordings, ceilings, benches and compute-sanitizer, into one folder.

    python bench/on_gpu.py [--out DIR]     under eight minutes on one GPU; needs CuPy, NVRTC and mpi4py
    python bench/on_gpu.py --dry-run       what it would run

Each step is a process of its own with a time limit. Its output and exit status are on disk when it ends, so that what
comes later cannot harm it; summary.md is rewritten after every step. What fails stops nothing. Exit status 1 if a step
failed, 2 without a GPU. compute-sanitizer comes with CUDA, or with the wheel nvidia-cuda-sanitizer-api (CUDA 12:
nvidia-cuda-sanitizer-api-cu12): where it is missing, its steps say so.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.gpu_clock import NoGpu, gpu_module
from harness.report import header

from cutpq.ranks.alone import SelfCommunicator

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 470.0
PYTHON = sys.executable

# Each runs in its own process: a kernel that reads out of bounds destroys the CUDA context for the tests after it.
TESTS = {
    "small-kernels": (
        ["tests/simt/test_small_kernels.py", "tests/simt/test_residual_norm.py", "tests/simt/test_round_rows.py"],
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
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    keeps: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

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


def steps(out: Path) -> list[Step]:
    """What a visit is made of; first what no other machine can give, last what only a doubt would need."""

    def bench(name: str, *flags: str) -> tuple[str, ...]:
        return (PYTHON, f"bench/{name}.py", *flags)

    def tests(*which: str) -> tuple[str, ...]:
        return (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *which)

    def sanitizer(tool: str, limit_s: float) -> Step:
        # CuPy probes what a device can do; the refused calls are no errors of ours.
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no")
        checked = (*command, *tests("-x", "tests/simt", "-k", SANITIZED))
        return Step(tool, checked, limit_s, environment=(("CUTPQ_TEST_POOL", "0"),))

    def ranks(number: int) -> Step:
        return Step(f"mlp-{number}-ranks", ("mpirun", "-n", str(number), *bench("mlp", "--smoke")), 60)

    return [
        Step("nvidia-smi", ("nvidia-smi", "-q", "-d", "CLOCK,MEMORY,POWER,ECC"), 10),
        Step("cupy", (PYTHON, "-c", "import cupy; cupy.show_config()"), 15),
        Step("packages", (PYTHON, "-m", "pip", "list", "--format=freeze"), 15),
        # Every configuration on all cores first: no later limit has to hold for a compiler too.
        Step("compile", bench("kernels", "--arch", "gpu"), 120),
        *(Step(f"tests-{name}", tests(*which), limit_s) for name, (which, limit_s) in TESTS.items()),
        Step("recordings", (PYTHON, "tests/simt/conformance.py"), 20, keeps="tests/recordings/*.npz"),
        Step("ceilings", bench("ceilings"), 20),
        Step("gemm", bench("gemm", "--all", "--json", str(out / "gemm.json")), 120),
        Step("mlp", bench("mlp", "--model", "llama-7b", "--project", "none", "--json", str(out / "mlp.json")), 45),
        Step("codec", bench("all_reduce", "-b", "1M", "-e", "1M", "--json", str(out / "codec.json")), 30),
        ranks(2),
        ranks(4),
        ranks(8),
        sanitizer("memcheck", 50),
        sanitizer("racecheck", 50),
        sanitizer("synccheck", 30),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run or list the steps; 1 if a step failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    day = datetime.date.today().isoformat()
    default = ROOT / "bench" / "results" / f"GPU-{day}"
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help="default bench/results/GPU-DATE")
    parser.add_argument("--dry-run", action="store_true", help="list the steps, run none")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    if args.dry_run:
        for step in steps(out):
            print(f"{step.name:19} {step.limit_s:4.0f} s  {step.shown}")
        print(f"# into {out}; all together {BUDGET_S:.0f} s at most")
        return 0
    try:
        xp = gpu_module()
    except NoGpu as error:
        print(f"on_gpu.py: a visit {error}; --dry-run shows the steps", file=sys.stderr)
        return 2
    about = header(SelfCommunicator("a visit", xp, int(xp.cuda.runtime.getDevice())))
    results = visit(steps(out), out, about)
    print(f"# written to {out}")
    return 0 if all(result.ok for result in results) else 1


def visit(steps: Iterable[Step], out: Path, about: Sequence[str] = (), budget_s: float = BUDGET_S) -> list[Result]:
    """Run the steps in order within the budget. Each leaves NUMBER-NAME.txt in `out`, all together summary.md."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget_s
    results: list[Result] = []
    for number, step in enumerate(steps, 1):
        results.append(run(step, out / f"{number:02}-{step.name}.txt", end - time.monotonic()))
        (out / "summary.md").write_text(summary(results, about))
        print(f"{step.name:19} {results[-1].seconds:6.1f} s  {results[-1].outcome}", flush=True)
    return results


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
    return Result(step, outcome, seconds, next((line for line in reversed(said) if line.strip()), ""))


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
