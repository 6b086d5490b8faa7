"""Put cuda_src and softgpu into wheels, inside cutpq: in a checkout they lie beside it. All else is in setup.cfg.

`package_dir` in setup.cfg could say the same. But then an editable install is an import hook, and Python asks import
hooks last: started in the folder that holds the clone, it would take the clone itself, a folder called cutpq, for an
empty namespace package. Where `package_dir` names nothing but the root (and it must name that), an editable install
is a line in a .pth file, and the package is found.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCudaSrc(build_py):
    """Copies the package, then the sources for the GPU into it; an editable install copies nothing."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in ("cuda_src", "softgpu"):
                inside = Path(self.build_lib) / "cutpq" / folder
                shutil.rmtree(inside, ignore_errors=True)  # what an earlier build left
                shutil.copytree(folder, inside)


setup(cmdclass={"build_py": BuildWithCudaSrc})
