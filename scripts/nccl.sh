#!/usr/bin/env bash
# Builds libflywheel_nccl.so (crates/torch-shim/cpp/nccl.cpp) into the folder given: what a training on several GPUs loads
# beside libtorch_cuda.so. Needs no GPU and no nvcc: headers and libraries of CUDA and NCCL come with the PyTorch of the tests'
# Python environment, and two packages of headers from PyPI. It must be of the same PyTorch release as all else.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?folder for the library}
python=${FLYWHEEL_PYTHON:?run it through make}
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
torch=$packages/torch nvidia=$packages/nvidia
headers=$(mktemp -d)
trap 'rm -rf "$headers"' EXIT
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$headers" \
  nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
mkdir -p "$out"
g++ -shared -fPIC -O2 -std=c++17 -D_GLIBCXX_USE_CXX11_ABI=1 -DUSE_DISTRIBUTED -DUSE_C10D_NCCL -w \
  -I"$torch/include" -I"$torch/include/torch/csrc/api/include" -I"$nvidia/nccl/include" -I"$nvidia/cu13/include" \
  -I"$headers/nvidia/cu13/include" -I"$headers/nvidia/cu13/include/cccl" \
  crates/torch-shim/cpp/nccl.cpp -o "$out/libflywheel_nccl.so" \
  -L"$torch/lib" -ltorch_cuda -lc10_cuda -ltorch_cpu -lc10 -Wl,--no-undefined -Wl,--allow-shlib-undefined
echo "$out/libflywheel_nccl.so"
