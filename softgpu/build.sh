#!/usr/bin/env bash
# Makes a virtual environment in which the CuPy of PyPI computes on a CUDA device that is a program.
#
#   softgpu/build.sh VENV [CUPY_VERSION]    needs g++ 12, python3.10+ and pip; a minute or two; writes to VENV alone
#   . VENV/bin/softgpu-env                  then run anything that uses CuPy
#
# What of CuPy is replaced: the extension that holds CUDA's runtime (built here from CuPy's own source against our
# runtime), cupy.cuda.thrust (which holds another), and NVIDIA's libraries, whose place ours take. Run it again after
# pip has installed or upgraded one of NVIDIA's packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$(realpath -m "${1:?where the virtual environment shall be}")
version=${2:-14.2.0}
build=$venv/softgpu-build lib=$venv/softgpu
mkdir -p "$build" "$lib"

[ -d "$venv/bin" ] || python3 -m venv "$venv"
. "$venv/bin/activate"
python -c 'import cutpq, mpi4py, pytest' 2> /dev/null || pip install -q -e "$here/..[mpi,test]"
pip install -q "cupy-cuda12x==$version" nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12 \
  nvidia-cuda-cccl-cu12 setuptools wheel "cython>=3.2,<3.3"
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
headers="-I$here/cuda/include -I$site/nvidia/cuda_runtime/include -I$site/nvidia/cuda_nvcc/include"
flags="-std=c++20 -O3 -march=native -ffp-contract=off -fno-strict-aliasing -fPIC -Wall $headers"

step() { printf 'softgpu: %s\n' "$*"; }
link() { g++ -shared -Wl,-soname,"$1" -o "$lib/$1.new" "${@:2}" && mv "$lib/$1.new" "$lib/$1"; }

step "the executor"
cp "$(PYTHONPATH=$here/.. python -c 'from cutpq.kernels import executor; print(executor.library_path())')" "$lib/libsoftgpu.so"

step "runtime and driver over it"
export here build flags
compile() { # FILE.cpp; not again where object and headers are older
  local object
  object=$build/$(basename "$1" .cpp).o
  if [ ! -f "$object" ] || [ -n "$(find "$1" "$here" -newer "$object" \( -name '*.h' -o -samefile "$1" \) -print -quit)" ]; then
    g++ $flags -c "$1" -o "$object"
  fi
}
export -f compile
sources=$(ls "$here"/cuda/*.cpp)
printf '%s\n' $sources | xargs -P "$(nproc)" -I{} bash -c 'compile {}'
device=$(for f in $sources; do
  case $f in */cublas.cpp | */nccl.cpp) ;; *) echo "$build/$(basename "$f" .cpp).o" ;; esac
done)
link libcuda.so.1 $device "$lib/libsoftgpu.so" -Wl,--no-undefined -Wl,-rpath,'$ORIGIN' -pthread

step "CuPy's extension over it"
if [ ! -d "$build/cupy" ]; then # its own build fails for want of CUDA, but leaves what it unpacked
  mkdir -p "$build/tmp"
  TMPDIR=$build/tmp pip download -q --no-clean --no-binary cupy --no-deps -d "$build/tmp" "cupy==$version" > /dev/null 2>&1 || true
  mv "$build"/tmp/pip-download-*/cupy_* "$build/cupy"
  rm -rf "$build/tmp"
fi
api=cupy_backends/cuda/api
cuda=$(grep -oP 'define CUDA_VERSION \K\d+' "$site/nvidia/cuda_runtime/include/cuda.h")
[ -f "$build/cupy/$api/runtime.cpp" ] || python "$here/cuda/cythonize.py" "$build/cupy" "$cuda"
python_headers=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -f "$build/runtime.o" ] || g++ -O1 -fPIC -w $headers -I"$python_headers" -I"$build/cupy/cupy_backends" -c "$build/cupy/$api/runtime.cpp" -o "$build/runtime.o"
for extension in "$site/$api"/runtime.*.so; do
  g++ -shared -o "$extension.new" "$build/runtime.o" -L"$lib" -l:libcuda.so.1 -Wl,-rpath,"$lib" && mv "$extension.new" "$extension"
done
rm -f "$site"/cupy/cuda/thrust.*.so
cp "$here/cuda/thrust.py" "$site/cupy/cuda/"

step "NVIDIA's libraries"
stubs() { # EXTENSION SONAME STATUS OBJECT...
  echo "$2 { global: *; };" > "$build/$1.map"
  python "$here/cuda/stubs.py" "$site"/cupy_backends/cuda/libs/$1.*.so "$1" "$3" "${@:4}" > "$build/$1_stubs.c"
  gcc -fPIC -c "$build/$1_stubs.c" -o "$build/$1_stubs.o"
  link "$2" "${@:4}" "$build/$1_stubs.o" -Wl,--version-script="$build/$1.map" -L"$lib" -l:libcuda.so.1 -Wl,-rpath,'$ORIGIN'
}
stubs cublas libcublas.so.12 15 "$build/cublas.o"
stubs curand libcurand.so.10 204
stubs cusparse libcusparse.so.12 10
stubs cusolver libcusolver.so.11 16
echo 'int softgpu_nothing_here;' > "$build/empty.c"
for name in libcublasLt.so.12 libnvJitLink.so.12; do link $name -x c "$build/empty.c"; done
link libnccl.so.2 "$build/nccl.o" -L"$lib" -l:libcuda.so.1 -Wl,-rpath,'$ORIGIN' -lrt
# Each has the soname of the library behind it. CuPy asks the loader for that name first, and the loader gives the library
# of the name that was loaded first, which is ours.
for name in libnvrtc.so.12 libnvrtc.so.13; do
  gcc -shared -fPIC -O1 -w "$here/cuda/nvrtc.c" -o "$build/$name" -Wl,-soname,"$name" -Wl,--version-script="$here/cuda/nvrtc.map" -ldl
done
python "$here/cuda/nvidia_nvrtc.py" "$site" "$build"

cat > "$venv/bin/softgpu-env" <<END
. "$venv/bin/activate"
export LD_LIBRARY_PATH=$lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export CUPY_ACCELERATORS= CUPY_CACHE_DIR=\${CUPY_CACHE_DIR:-$venv/softgpu-cache/cupy}
export CUTPQ_CACHE_DIR=\${CUTPQ_CACHE_DIR:-$venv/softgpu-cache/cutpq}
export PYTHONPATH=$here/cuda/python\${PYTHONPATH:+:\$PYTHONPATH}
END
. "$venv/bin/softgpu-env"
python -c 'import cupy; assert int((cupy.arange(10) + 1).sum()) == 55; print("softgpu:", cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())'
