#!/usr/bin/env bash
# `make test`: every stage in turn, with its time; the sum of the test runner's results last.
# A stage that cannot run fails. ALL=1 adds what takes longer (`make test-all`).
set -uo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test: the local cluster needs root: run \`sudo -E env PATH=\"\$PATH\" make test\`" >&2; exit 1; }
log=$(mktemp -d "${TMPDIR:-/tmp}/flywheel-test.XXXXXX")
export FLYWHEEL_CLUSTER=test-$$
table=() failed=() begin=$SECONDS

jiffies() { # of all processors since the start of the machine: busy with what is not niced, and in all
  awk '/^cpu /{print $2 + $4 + $7 + $8, $2 + $3 + $4 + $5 + $6 + $7 + $8}' /proc/stat
}
stage() { # name, command…: runs it, keeps its output for the sum, notes time, how busy the machine was, and outcome
  local name=$1 start=$SECONDS code=0 before busy; shift
  printf '\n=== %s\n' "$name"
  before=$(jiffies)
  "$@" 2>&1 | tee "$log/${#table[@]}.log" || code=$?
  busy=$(echo "$before $(jiffies)" | awk '{print int(100 * ($3 - $1) / ($4 - $2 + 1))}')
  table+=("$(printf '%-50s %5d s  %3d %% busy   %s' "$name" $((SECONDS - start)) "$busy" "$([ $code = 0 ] && echo ok || echo FAILED)")")
  [ $code = 0 ] || failed+=("$name")
  return $code
}
finish() {
  local code=$?
  make cluster-down >/dev/null 2>&1
  printf '\n=== time per stage (%d s in all)\n' $((SECONDS - begin))
  printf '%s\n' "${table[@]}"
  [ ${#failed[@]} = 0 ] || printf 'FAILED: %s\n' "${failed[@]}"
  # Each failed assertion in a few lines, since what a stage wrote may be long gone.
  grep -h -A 2 "' ([0-9]*) panicked at " "$log"/*.log | cut -c1-400 | head -100
  # The runner's closing lines, added up.
  cat "$log"/*.log | awk '/^test result: /{p+=$4; f+=$6; i+=$8} END{printf "\n%d passed, %d failed, %d skipped\n", p, f, i}'
  rm -rf "$log"
  [ ${#failed[@]} = 0 ] || code=1
  exit $code
}
trap finish EXIT

torch=${FLYWHEEL_CACHE:?run it through make}/libtorch-2.13.0-cpu
test_with() { # cargo test with all that tests look for in the environment
  env LIBTORCH="$torch" LD_LIBRARY_PATH="$torch/lib" FLYWHEEL_PYTHON="$FLYWHEEL_CACHE/python/bin/python" \
    KSERVE_PYTHON="$FLYWHEEL_CACHE/kserve-python/bin/python" cargo test --profile ci --locked --no-fail-fast "$@"
}
beside() { # functions: at once, since each waits for most of its time; the words of the first as they come, then those of the others
  local code=0 first=$1 name; shift
  declare -A running
  for name in "$@"; do "$name" >"$log/$name" 2>&1 & running[$name]=$!; done
  "$first" || code=$?
  for name in "$@"; do
    wait "${running[$name]}" || code=$?
    cat "$log/$name"
  done
  return $code
}
# One selection of packages for all, so that dependencies are built with one set of features.
# What computes, in one lane: trainings with threads of their own slow each other down by far more than their number.
learning() {
  KILLS=${ALL:+100} test_with --workspace --test training --test resume --test together --test bad_input --test hostile --test program \
    --test commands --test store --test sets --test artifact --test parity
}
waiting() { # what waits: for limits to pass, for other programs
  local code=0
  test_with --workspace --test tracking --test several --test minio || code=$?
  FENCE_TRIALS=${ALL:+1000} test_with --workspace --lib -- --ignored --nocapture minio || code=$?
  return $code
}
# With what the others leave of the processors.
fuzzing() { FUZZ_SECONDS=60 nice -n 19 scripts/fuzz.sh; }
protocols() { # of the serving pod
  test_with --workspace --test requests --test feedback --test exchange --test open_inference --test openapi --test http2 --test tls --test traces --test clients
}
schemas() { test_with --workspace --test crds; }
units() { # and lint, which builds as well, once they run
  local code=0
  test_with --workspace --lib --bins || code=$?
  SCHEDULES=${ALL:+1000000} test_with --workspace --test schedules -- --nocapture || code=$?
  nice make lint || code=$?
  return $code
}
# Two at a time, since most of their time is waiting; the longest by itself.
the_loop() { test_with --workspace --test end_to_end -- --nocapture flywheel::; }
users() { test_with --workspace --test end_to_end -- --nocapture --test-threads=1 --skip flywheel::; }
faults() { test_with --workspace --test faults -- --nocapture; }
planes() { CRASH_POINTS=${ALL:+all} test_with --workspace --test house --test chart --test control_plane --test arguments --test process; }
bin=${CARGO_TARGET_DIR:?run it through make}/ci

stage "setup: packages, libtorch, python, programs" make setup || exit 1
stage "build: programs and images" make images || exit 1
stage "cluster: five nodes" make cluster A100=2 T4=2 || exit 1
variables=$("$bin/flywheel-localcluster" env) || exit 1
eval "$variables"
stage "build: tests" test_with --workspace --no-run || exit 1
stage "trainer, server, store, data, learn, CLI" beside learning waiting fuzzing || true
stage "CRDs, chart, API server; protocols; units, lint" beside schemas planes protocols units || true
stage "install: images, chart" make install || exit 1
stage "example data" make example-data || exit 1
stage "end to end with real pods" beside users the_loop || true
# By itself: what it measures is to be compared with its caps.
stage "faults with real pods" faults || true
if [ -n "${ALL:-}" ]; then
  TRIALS=20 stage "20 writers behind a partition" faults || true
  # The oldest and the newest API server that the Go modules give.
  for version in 1.34.4 1.37.2; do
    FLYWHEEL_TEST_KUBERNETES=$version stage "CRDs on Kubernetes $version" test_with --workspace --test crds || true
  done
  # It compares the whole machine before and after, so no other cluster may stand.
  make cluster-down
  stage "life of local clusters" test_with --workspace --test lifecycle || true
fi
