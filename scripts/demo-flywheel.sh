#!/usr/bin/env bash
# `make demo-flywheel`: a service meets texts that it was not made for and learns from what clients say, while you watch.
set -euo pipefail
cd "$(dirname "$0")/.."
cluster=${CARGO_TARGET_DIR:-target}/${PROFILE:-ci}/flywheel-localcluster
plugin=${CARGO_TARGET_DIR:-target}/${PROFILE:-ci}/kubectl-flywheel
example=$FLYWHEEL_CACHE/example
kubectl() { "$cluster" kubectl "$@"; }
say() { printf '[%4d s] %s\n' $SECONDS "$*"; }
die() { echo "demo-flywheel: $*" >&2; exit 1; }
variables=$("$cluster" env)
eval "$variables"
start="make cluster T4=2 && make install && make example-data (as root)"
[ "$(kubectl get nodes -l nvidia.com/gpu.product=Tesla-T4 -o name | wc -l)" -ge 2 ] || die "it takes two T4 nodes: $start"
kubectl get deployment -n flywheel-system -o name | grep -q . || die "the chart is not installed: $start"
[ -f "$example/known/train.csv" ] || die "there is no data: $start"

reason() { kubectl get infsvc assistant -n learning -o jsonpath="{.status.conditions[?(@.type==\"$1\")].reason}"; }
await() { # CONDITION REASON SECONDS
  local until=$((SECONDS + $3))
  while [ "$(reason "$1")" != "$2" ]; do
    kill -0 $clients 2>/dev/null || { say "the clients have ended:"; tail -3 "$work/clients"; return 1; }
    [ $SECONDS -lt $until ] || { say "$1 did not become $2 in $3 s:"; "$plugin" status infsvc/assistant -n learning; return 1; }
    sleep 1
  done
}

if kubectl get namespace learning >/dev/null 2>&1; then
  say "what an earlier demo left is removed"
  kubectl delete namespace learning --timeout=300s >/dev/null
fi
scripts/object-store.sh learning
kubectl create secret generic receipts -n learning --from-literal=key="$(head -c 32 /dev/urandom | base64)" >/dev/null
kubectl apply -f examples/learning/training-job.yaml -f examples/learning/inference-service.yaml >/dev/null
say "a first version is trained, without six of the nineteen intents"
timeout --foreground 900 "$plugin" progress assistant -n learning --watch || die "the first training failed, or took longer than 900 s"
kubectl wait -n learning infsvc/assistant --for=condition=Ready --timeout=180s >/dev/null
uid=$(kubectl get infsvc assistant -n learning -o jsonpath='{.metadata.uid}')
address=http://$(kubectl get service assistant -n learning -o jsonpath='{.spec.clusterIP}')

work=$(mktemp -d)
trap 'kill ${clients:-} ${story:-} ${picture:-} 2>/dev/null || true; rm -rf "$work"' EXIT
mkfifo "$work/words"
python3 examples/clients/feedback.py "$address" "$example/data/train.csv" "$example/known/train.csv" <"$work/words" >"$work/clients" 2>&1 &
clients=$!
exec 3>"$work/words"
# Clients that are gone are told of by `await`.
trap '' PIPE

# Said here, and among the picture's news by an event.
tell() {
  say "$*"
  kubectl create -f - >/dev/null <<YAML || true
apiVersion: v1
kind: Event
metadata: {generateName: demo-, namespace: learning}
involvedObject: {apiVersion: flywheel.dev/v1alpha1, kind: InferenceService, name: assistant, namespace: learning, uid: $uid}
source: {component: demo-flywheel}
type: Normal
reason: Demo
message: "$*"
count: 1
firstTimestamp: "$(date -u +%FT%TZ)"
lastTimestamp: "$(date -u +%FT%TZ)"
YAML
}

# What happens, beside the picture.
story() {
  tell "clients ask what the version knows; what is usual is learnt"
  await DriftDetected NoDrift 180
  before=$(tail -1 "$work/clients")
  tell "three texts of ten are of new intents from now on"
  echo new >&3
  await DriftDetected Drifted 240
  tell "drift is declared, before anybody judged an answer"
  during=$(tail -1 "$work/clients")
  tell "clients say what would have been right"
  echo judge >&3
  await Retraining RetrainingRunning 240
  tell "a training begins"
  await Retraining NoDrift 600
  tell "its version answers all requests"
  # Two of the clients' lines, so that the last one is of this version alone.
  sleep 21
  after=$(tail -1 "$work/clients")
  echo stop >&3
  printf '\n  usual texts            %s\n  with new intents       %s\n  after the retraining   %s\n\n' "$before" "$during" "$after"
  kubectl get tj,mv,infsvc -n learning
}

# On a terminal the picture has it for itself, and what happened is told after it.
input=/dev/null
exec 4>&1
if [ -t 1 ]; then
  input=/dev/tty
  exec 4>"$work/story"
fi
"$plugin" watch assistant -n learning <$input &
picture=$!
story >&4 2>&1 &
story=$!
# The picture ends with the story, or the story with the picture.
first=
wait -n -p first $picture $story && ended=0 || ended=$?
if [ "$first" = $picture ]; then
  [ ! -t 1 ] || cat "$work/story"
  [ $ended = 0 ] || die "the picture failed"
  say "the picture was left before the end; the service stays, its clients go"
  exit 0
fi
kill $picture 2>/dev/null || true
wait $picture 2>/dev/null || true
[ ! -t 1 ] || cat "$work/story"
[ $ended = 0 ] || die "the loop did not close"
"$plugin" explain assistant -n learning
say "done. kubectl delete namespace learning removes it; make cluster-down ends the cluster"
