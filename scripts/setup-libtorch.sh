#!/usr/bin/env bash
# A CPU libtorch for tch 0.26, from the PyPI wheel alone: prints the folder to use as LIBTORCH.
#
# The wheel of torch for Linux is a CUDA build. Its libtorch_cpu.so needs libcudart and libcupti, for the profiler only:
# both are stubbed here, so that nothing of NVIDIA's is downloaded.
set -euo pipefail
version=2.13.0 # the one release that tch 0.26 accepts
dir=${FLYWHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flywheel}/libtorch-$version-cpu
[ -f "$dir/build-version" ] && { echo "$dir"; exit; }
for tool in gcc nm unzip python3; do
  command -v $tool >/dev/null || { echo "setup-libtorch: $tool is missing (apt-get install gcc binutils unzip python3-pip)" >&2; exit 1; }
done
echo "setup-libtorch: downloading torch $version (527 MB, once)" >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/libtorch.XXXXXX"); trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_x86_64 --python-version 3.11 -d "$work" "torch==$version" >&2
unzip -q "$work"/torch-*.whl 'torch/lib/libtorch_cpu.so' 'torch/lib/libc10.so' 'torch/lib/libgomp.so.1' 'torch/include/*' -d "$work"
out=$work/out; mkdir -p "$out"; mv "$work/torch/lib" "$out/lib"; mv "$work/torch/include" "$out/include"
cd "$out/lib"
for name in cudart cupti; do
  so=lib$name.so.13
  nm -D --undefined-only libtorch_cpu.so | awk '{print $NF}' | sed -n "s/@$so\$//p" | sort -u | sed 's/.*/int &(void){return 999;}/' >"$work/$name.c"
  echo "$so { global: *; };" >"$work/$name.map"
  gcc -shared -fPIC -Wl,-soname,$so -Wl,--version-script="$work/$name.map" -o $so "$work/$name.c"
done
# The wheel's libtorch.so pulls in libtorch_cuda.so; link time needs the name only.
: >"$work/empty.c"
gcc -shared -fPIC -Wl,-soname,libtorch.so -Wl,--no-as-needed -o libtorch.so "$work/empty.c" -L. -ltorch_cpu -Wl,--allow-shlib-undefined -Wl,-rpath-link,.
ln -sf libgomp.so.1 libgomp.so
strip --strip-unneeded libtorch_cpu.so libc10.so
echo $version >"$out/build-version"
mkdir -p "$(dirname "$dir")"; rm -rf "$dir"; mv "$out" "$dir"
echo "$dir"
