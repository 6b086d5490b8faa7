"""The plan of the house: which folder imports which, one launcher for each kernel, prose that names what exists.

Each rule is a function of a folder that returns its faults, one sentence each. The repository must have none but the
known exceptions, a list that only shrinks; planted faults show that each rule finds what it is for.
"""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import cutpq

ROOT = Path(__file__).resolve().parent.parent

# Top floor first: a module imports from its own floor's folder and from those below. ranks/failures belongs to ranks.
FLOORS = (
    "shipped", "cli", "quantization", "model", "layers", "ranks", "convert", "cost", "checkpoint", "codecs",
    "ops", "weights", "kernels", "trace", "array",
)  # fmt: skip
ABOVE_ALL = ("__init__", "__main__")  # the public names, and the command line's other spelling

UPWARD_IMPORTS: set[str] = set()
CIRCLES: set[str] = set()
UNKNOWN_NAMES: set[str] = set()


# ---- the rules


def upward_imports(package):
    """Imports of a folder that is not below, wherever they stand: in functions and under TYPE_CHECKING too."""
    faults = set()
    for module in modules(package):
        for target in imports(package, module):
            mine, other = floor(module), floor(target)
            if mine in ABOVE_ALL:
                continue
            if other in ABOVE_ALL or (mine != other and FLOORS.index(other) <= FLOORS.index(mine)):
                faults.add(f"{module} imports {spelled(target)}, which is not below it")
    return faults


def circles(package):
    """Modules that reach each other by imports."""
    direct = {module: imports(package, module) for module in modules(package)}

    def reached(start):
        found, ahead = set(), list(direct[start])
        while ahead:
            module = ahead.pop()
            if module not in found:
                found.add(module)
                ahead += direct.get(module, ())
        return found

    reach = {module: reached(module) for module in direct}
    rings = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in direct}
    return {f"circle: {', '.join(sorted(ring))}" for ring in rings if ring}


def open_doors(package):
    """__init__.py of folders that hold anything but one line of docstring."""
    faults = set()
    for door in sorted(package.glob("*/**/__init__.py")):
        body = ast.parse(door.read_text()).body
        text = ast.get_docstring(ast.Module(body, [])) or ""
        if len(body) != 1 or not text.endswith(".") or "\n" in text:
            faults.add(f"{door.relative_to(package)} must hold a docstring of one line and nothing else")
    return faults


def kernel_launchers(root):
    """Kernels that not exactly one module loads, or whose first line does not name that module."""
    loads = [(pattern, path) for path in sorted(root.glob("cutpq/**/*.py")) for pattern in loaded_kernels(path)]
    faults = set()
    for kernel in sorted(root.glob("cuda_src/*.cu")):
        launchers = {str(path.relative_to(root)) for pattern, path in loads if re.fullmatch(pattern, kernel.stem)}
        named = re.findall(r"caller: (\S+)", kernel.read_text().partition("\n")[0])
        if len(launchers) != 1:
            faults.add(f"{kernel.name} must have one launcher, found {sorted(launchers)}")
        elif named != list(launchers):
            faults.add(f"{kernel.name} must name {launchers.pop()} in its first line as `caller: PATH`, found {named}")
    return faults


def unknown_names(root):
    """What the Markdown pages name in code, in links or in tables of modules, and nobody finds."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("docs/**/*.md"))]
    return {f"{page.relative_to(root)}: {what}" for page in pages if page.is_file() for what in unknown(page, root)}


def unknown(page, root):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not (page.parent / target).exists():
            yield f"link to {target}"
    codes = code_pieces(text)
    for code in codes:
        yield from (f"path {path}" for path in paths_in(code) if not path_exists(path, page, root))
        yield from (f"flag {flag}" for flag in unknown_flags(code, root))
        yield from (
            f"module or name {name}" for name in re.findall(r"\b(?:cutpq|cq)(?:\.\w+)+", code) if not is_there(name)
        )
        yield from (f"variable {name}" for name in re.findall(r"\bCUTPQ_\w+", code) if f'"{name}"' not in sources(root))
    for name in modules_in_tables(text):
        if not any(root.glob(f"cutpq/**/{name}.py")) and not any(root.glob(f"cutpq/**/{name}/")):
            yield f"module {name}"


# ---- reading Python


def modules(package):
    return [str(path.relative_to(package)) for path in sorted(package.rglob("*.py"))]


def floor(module):
    return module.partition("/")[0].removesuffix(".py")


def spelled(module):
    return f"cutpq/{module}" if floor(module) in ABOVE_ALL else module


def imports(package, module):
    """The modules of the package that a module imports anywhere, but for the doors on the way to them."""
    found = set()
    here = Path(module).parent.parts
    for node in ast.walk(ast.parse((package / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            found |= named(package, (*base, *(node.module or "").split(".")), [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package.name:
            found |= named(package, node.module.split(".")[1:], [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            own = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == package.name]
            found |= set().union(*(named(package, parts[1:-1], parts[-1:]) for parts in own if len(parts) > 1))
    return found - {module}


def named(package, parts, names):
    """Of `from parts import names`: the module that is parts, or those among names, or the door."""
    place = package.joinpath(*filter(None, parts))
    if place.with_suffix(".py").is_file():
        return {str(place.with_suffix(".py").relative_to(package))}
    files = [place / f"{name}.py" if (place / f"{name}.py").is_file() else place / "__init__.py" for name in names]
    return {str(file.relative_to(package)) for file in files}


def loaded_kernels(path):
    """Patterns of the kernel names that a module passes to load()."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name != "load":
            continue
        first = node.args[0]
        pieces = first.values if isinstance(first, ast.JoinedStr) else [first]
        yield "".join(re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in pieces)


# ---- reading Markdown

CODE_FILES = ["py", "cu", "cuh", "cpp", "h", "md", "json", "txt", "png", "toml", "cfg", "npy", "safetensors"]
OUTSIDE = ("/", "~", "path/to", "http", "huggingface", "nvidia")


def code_pieces(text):
    """Lines of fenced and indented blocks, and spans in backticks."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```\n", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)", "\n\n" + rest)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^    .*$", "", rest, flags=re.M))
    return [line for block in fenced + indented for line in block.splitlines()] + spans


def paths_in(code):
    """Words that look like a path of this repository. A word in capitals (NAME.cu, DIR/x) stands for something."""
    for word in re.findall(r"(?<![\w/.:~$-])[\w.*-]+(?:/[\w.*-]+)*/?", code):
        word = word.rstrip(".")
        is_file = word.rpartition(".")[2] in CODE_FILES and "." in word.strip(".")
        only_name = "/" not in word and word.rpartition(".")[2] not in ("py", "cu", "cuh", "cpp")
        if word.startswith(OUTSIDE) or only_name or any(part.split(".")[0].isupper() for part in word.split("/")):
            continue
        if is_file or word.endswith("/") or (ROOT / word.partition("/")[0]).is_dir():
            yield word


def path_exists(path, page, root):
    """From the root, a folder that pages shorten away, or beside the page; a bare file name anywhere."""
    bases = [root, page.parent, root / "cutpq", root / "cuda_src", root / "bench", root / "tests"]
    if "/" not in path:
        bases += [
            folder for base in ("cutpq", "cuda_src", "bench", "tests", "examples") for folder in folders(root / base)
        ]
    return any(next(base.glob(path.rstrip("/")), None) for base in bases)


@cache
def folders(base):
    return [path for path in base.rglob("*") if path.is_dir() and path.name != "__pycache__"]


def unknown_flags(code, root):
    """Flags of our commands that no source declares: those behind the command, or alone in backticks."""
    command = re.search(r"(?:[\w/]+\.py|\bcutpq (?:inspect|plan|convert|\w+))(?=\s|$)(.*)", code)
    if command is None and not code.startswith("-"):
        return []
    rest = (command[1] if command else code).partition("#")[0]
    flags = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", rest)
    return [flag for flag in flags if flag not in ("--help", "-h") and f'"{flag}"' not in sources(root)]


@cache
def sources(root):
    """All Python of the commands and of the package in one text."""
    return "\n".join(
        path.read_text() for top in ("cutpq", "bench", "tests") for path in sorted((root / top).rglob("*.py"))
    )


def is_there(name):
    """Whether cutpq.a.b or cq.a is a module's file or a name behind it."""
    value, place = cutpq, ROOT / "cutpq"
    for part in name.split(".")[1:]:
        place /= part
        is_module = place.is_dir() or place.with_suffix(".py").is_file()
        if is_module and not hasattr(value, part):  # nothing in this process has imported it yet
            importlib.import_module(".".join(place.relative_to(ROOT).parts))
        value = getattr(value, part, None)
        if value is None and not is_module:
            return False
    return True


def modules_in_tables(text):
    """Names in backticks in the first column of tables headed `module` or `folder`."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[0] in ("module", "folder"))
        if inside:
            yield from re.findall(r"`(\w+)/?`", cells[0])


# ---- the repository


def expect(found, known):
    """No faults but the known exceptions, and no exception that has been mended already."""
    assert not found - known, sorted(found - known)
    assert not known - found, f"mended: strike from the list {sorted(known - found)}"


def test_a_folder_imports_only_lower_ones():
    expect(upward_imports(ROOT / "cutpq"), UPWARD_IMPORTS)


def test_every_module_has_a_floor():
    assert {floor(module) for module in modules(ROOT / "cutpq")} <= {*FLOORS, *ABOVE_ALL}


def test_no_circles():
    expect(circles(ROOT / "cutpq"), CIRCLES)


def test_doors_hold_a_docstring_only():
    assert open_doors(ROOT / "cutpq") == set()


def test_every_kernel_has_one_launcher():
    assert kernel_launchers(ROOT) == set()


def test_pages_name_what_exists():
    expect(unknown_names(ROOT), UNKNOWN_NAMES)


# ---- planted faults


def plant(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "from ..layers.mlp import Mlp",
        "from ..layers import mlp",
        "from cutpq.layers import mlp",
        "import cutpq.layers.mlp",
        "def late():\n    from ..layers import mlp",
        "if TYPE_CHECKING:\n    from ..layers.mlp import Mlp",
    ],
)
def test_an_upward_import_is_found(tmp_path, line):
    package = plant(tmp_path / "cutpq", {"ops/gemm.py": line, "layers/mlp.py": "from ..ops import gemm"})
    assert upward_imports(package) == {"ops/gemm.py imports layers/mlp.py, which is not below it"}


def test_imports_below_and_beside_are_allowed(tmp_path):
    below = {
        "layers/mlp.py": "from ..ops import gemm\nfrom . import plan\nfrom ..array import np",
        "layers/plan.py": "",
    }
    assert upward_imports(plant(tmp_path / "cutpq", {**below, "ops/gemm.py": "", "array.py": ""})) == set()


def test_an_import_of_the_public_names_is_found(tmp_path):
    package = plant(tmp_path / "cutpq", {"ops/gemm.py": "from .. import matmul", "__init__.py": ""})
    assert upward_imports(package) == {"ops/gemm.py imports cutpq/__init__.py, which is not below it"}


def test_a_circle_of_type_hints_is_found(tmp_path):
    hint = "if TYPE_CHECKING:\n    from .a import A"
    package = plant(
        tmp_path / "cutpq", {"ops/a.py": "from . import b", "ops/b.py": "from .c import C", "ops/c.py": hint}
    )
    assert circles(package) == {"circle: ops/a.py, ops/b.py, ops/c.py"}


@pytest.mark.parametrize("text", ['"""Door."""\nfrom .a import A', '"""No full stop"""', "", '"""Two.\n\nLines."""'])
def test_an_open_door_is_found(tmp_path, text):
    assert len(open_doors(plant(tmp_path, {"ops/__init__.py": text, "__init__.py": "from .ops.a import A"}))) == 1


GOOD_KERNEL = "// k: a kernel.   caller: cutpq/ops/k.py\n"


@pytest.mark.parametrize(
    "files, fault",
    [
        ({"cuda_src/k.cu": GOOD_KERNEL}, "must have one launcher"),
        (
            {"cuda_src/k.cu": GOOD_KERNEL, "cutpq/ops/k.py": "load('k')", "cutpq/ops/l.py": "x.load('k')"},
            "must have one",
        ),
        ({"cuda_src/k.cu": GOOD_KERNEL, "cutpq/ops/l.py": "load(f'{x}')"}, "must name cutpq/ops/l.py"),
        ({"cuda_src/k.cu": "\n" + GOOD_KERNEL, "cutpq/ops/k.py": "load('k')"}, "must name cutpq/ops/k.py"),
    ],
)
def test_a_kernel_without_its_one_launcher_is_found(tmp_path, files, fault):
    (found,) = kernel_launchers(plant(tmp_path, files))
    assert found.startswith(f"k.cu {fault}")


def test_a_kernel_with_its_launcher_passes(tmp_path):
    assert kernel_launchers(plant(tmp_path, {"cuda_src/k.cu": GOOD_KERNEL, "cutpq/ops/k.py": "load('k')"})) == set()


@pytest.mark.parametrize(
    "text, found",
    [
        ("see `cutpq/ops/gone.py`", "path cutpq/ops/gone.py"),
        ("see `gone.py`", "path gone.py"),
        ("see `ops/gone/`", "path ops/gone/"),
        ("[page](docs/gone.md)", "link to docs/gone.md"),
        ("\n    python bench/mlp.py --gone 3   # three\n", "flag --gone"),
        ("```\ncutpq plan DIR --gone\n```\n", "flag --gone"),
        ("pass `--gone`", "flag --gone"),
        ("`cutpq.ops.gone` has it", "module or name cutpq.ops.gone"),
        ("```python\ny = cq.gone(x)\n```\n", "module or name cq.gone"),
        ("set `CUTPQ_GONE=1`", "variable CUTPQ_GONE"),
        ("| module | what |\n|---|---|\n| `gemm`, `gone` | x |\n", "module gone"),
    ],
)
def test_an_unknown_name_is_found(tmp_path, text, found):
    page = plant(tmp_path, {"README.md": text}) / "README.md"
    assert list(unknown(page, ROOT)) == [found]


def test_known_names_and_those_of_others_pass(tmp_path):
    text = (
        "`cutpq/ops/gemm.py`, `gemm.py`, `ops/gemm.py`, `tests/simt`, `cuda_src/*.cu`, `NAME.cu`, `path/to/folder`\n"
        "`1/tp`, `--smoke`, `CUTPQ_COMM`, `cutpq.ops.gemm.matmul`, `cq.matmul`, `config.json`, `x.py.y`\n\n"
        "    mpirun --hostfile hosts python bench/mlp.py --smoke   # not --this\n"
        "    nsys profile --trace cuda -o mlp\n\n| module | what |\n|---|---|\n| `gemm` | `gone` |\n"
    )
    assert list(unknown(plant(tmp_path, {"README.md": text}) / "README.md", ROOT)) == []
