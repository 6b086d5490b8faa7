"""Puts softgpu's NVRTC in front of every NVRTC that pip has installed in a virtual environment.

    python nvidia_nvrtc.py SITE-PACKAGES FOLDER     of our libraries, which have NVIDIA's names

NVIDIA's library moves into the folder real/ beside it (it looks for its own name, so that it has to keep it), and ours,
which loads it from there, takes its place. CuPy loads whichever version it finds first: with the wheels of CUDA 12 and
13 side by side that is not always the one it was built for, so that both are replaced.
"""

import shutil
import sys
from pathlib import Path


def replace(library: Path, ours: Path) -> None:
    real = library.parent / "real"
    real.mkdir(exist_ok=True)
    if not (real / library.name).exists():
        library.rename(real / library.name)
    for builtins in library.parent.glob("libnvrtc-builtins.so*"):
        link = real / builtins.name
        link.unlink(missing_ok=True)
        link.symlink_to(f"../{builtins.name}")
    unfinished = library.with_suffix(".new")
    shutil.copy(ours, unfinished)
    unfinished.replace(library)


site, ours = map(Path, sys.argv[1:])
for folder in ("cuda_nvrtc/lib", "cu13/lib"):
    for library in sorted((site / "nvidia" / folder).glob("libnvrtc.so.*")):
        replace(library, ours / library.name)
        print(f"softgpu: {library.relative_to(site)} gives PTX")
