#!/usr/bin/env bash
# Fuzzes what clients send, for FUZZ_SECONDS each target (TARGETS=). Coverage comes from the stable compiler's own LLVM, so
# neither a nightly toolchain nor cargo-fuzz is needed; there is no memory sanitizer, as the parsers have no unsafe code.
set -euo pipefail
cd "$(dirname "$0")/../crates/wire/fuzz"
seconds=${FUZZ_SECONDS:-10}
target_dir=${CARGO_TARGET_DIR:-$PWD/../../../target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=(level=4 inline-8bit-counters pc-table trace-compares)
flags="-Cpasses=sancov-module --cfg fuzzing"
for option in "${llvm[@]}"; do flags+=" -Cllvm-args=-sanitizer-coverage-$option"; done
# With --target the flags stay away from build scripts.
RUSTFLAGS=$flags CARGO_TARGET_DIR=$target_dir cargo build -q --locked --release --target "$host"
fuzz() {
  local target=$1 corpus=$target_dir/corpus/$1 log
  mkdir -p "$corpus"
  log=$(mktemp)
  # Bodies are at most 1 MiB; most faults of parsers are in short ones.
  if ! "$target_dir/$host/release/$target" "$corpus" "seeds/$target" -dict=json.dict -max_total_time="$seconds" -max_len=8192 \
    -timeout=5 -rss_limit_mb=1024 -verbosity=1 -print_final_stats=1 -artifact_prefix="$target_dir/$target-" >"$log" 2>&1; then
    tail -30 "$log"
    echo "fuzz: $target failed; keep the input as crates/wire/fuzz/seeds/$target/<what it shows> with the fix" >&2
    rm -f "$log"
    return 1
  fi
  printf 'fuzz: %-8s %s inputs in %s s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$seconds"
  rm -f "$log"
}
export -f fuzz
export target_dir host seconds
# Two at a time.
printf '%s\n' ${TARGETS:-predict feedback infer grpc headers} | xargs -P 2 -I{} bash -c 'fuzz {}'
