#!/usr/bin/env bash
# `make quickstart`: from a fresh clone to answers, each step with its time. Run again, it takes up where things stand.
set -euo pipefail
cd "$(dirname "$0")/.."
begin=$SECONDS
step() { printf '\n[%3d s] %s\n' $((SECONDS - begin)) "$*"; }
die() { echo "quickstart: $*" >&2; exit 1; }

for tool in cargo go python3 make; do command -v $tool >/dev/null || die "$tool is missing; install Rust (1.95 or newer), Go (1.26 or newer), Python 3 with pip, make"; done
[ "$(id -u)" = 0 ] || die "nodes need network namespaces, mounts and control groups: run \`sudo -E env PATH=\"\$PATH\" make quickstart\`"

cat <<'TEXT'
Flywheel quickstart. On this machine it will
  - install Debian packages: binutils busybox-static ca-certificates conntrack containernetworking-plugins curl faketime
    g++ iproute2 iptables python3-venv runc unzip util-linux
  - download libtorch (527 MB, PyPI), an encoder and sentences (84 MB, PyPI), Go and Rust modules
  - build Kubernetes, etcd, containerd, CoreDNS, MinIO and helm from their Go modules, and Flywheel itself
and keep all of it under the cache folder (FLYWHEEL_CACHE, ~/.cache/flywheel). The first time takes about half an hour on two
cores, most of it compiling; the next time two and a half to six. `make cluster-down` ends the cluster.
TEXT

step "programs of the cluster, Flywheel's programs and images"
make programs
make images >/dev/null
step "cluster: one system node, one A100 node, one T4 node (GPUs simulated, pods compute on the processor)"
make cluster >/dev/null
cluster=${CARGO_TARGET_DIR:-target}/${PROFILE:-ci}/flywheel-localcluster
kubectl() { "$cluster" kubectl "$@"; }
variables=$("$cluster" env)
eval "$variables"
step "images onto the nodes, chart"
make install
kubectl get pods -n flywheel-system
step "data and encoder into the object store"
make example-data

step "examples/intent: a TrainingJob and the InferenceService that waits for its ModelVersion"
scripts/object-store.sh
kubectl apply -f examples/intent/training-job.yaml -f examples/intent/inference-service.yaml

last=; deadline=$((SECONDS + 1200))
while [ $SECONDS -lt $deadline ]; do
  now=$(kubectl get tj intent -n intent -o go-template='{{with .status}}{{.state}}{{with .progress}}{{with .phase}} {{.}}{{end}}{{with .step}} step {{.}}{{end}}{{with .loss}} loss {{.}}{{end}}{{end}}{{end}}')
  [ "$now" = "$last" ] || { printf '[%3d s]   %s\n' $((SECONDS - begin)) "$now"; last=$now; }
  case $now in Complete*) break ;; Failed* | Stalled*) kubectl describe tj intent -n intent | tail -30; die "the training failed" ;; esac
  sleep 2
done
kubectl wait -n intent tj/intent --for=condition=Complete --timeout=10s >/dev/null || die "the training did not end in 20 minutes; kubectl describe tj intent -n intent"
step "what came out"
kubectl get tj,mv -n intent
kubectl get mv intent-v1 -n intent -o jsonpath='{range .spec.metrics[*]}{"  "}{.name}{" = "}{.value}{"\n"}{end}'
step "service"
kubectl wait -n intent infsvc/intent --for=condition=Ready --timeout=180s >/dev/null || { kubectl describe infsvc intent -n intent | tail -30; die "the service is not Ready"; }
kubectl get infsvc -n intent
step "questions"
address=$(kubectl get service intent -n intent -o jsonpath='{.spec.clusterIP}')
port=$(kubectl get service intent -n intent -o jsonpath='{.spec.ports[0].port}')
for text in "dim the lamp in the study to thirty percent" "how much longer on the egg timer" "play the last song once more" \
  "how warm is it upstairs" "is the back door closed"; do
  # The machine reaches the cluster's Services, as pods do.
  answer=$(curl -fsS -m 5 -w '\n%{time_total}' -H 'content-type: application/json' -d "{\"text\": \"$text\"}" "http://$address:$port/predict")
  printf '  %-46s %-26s p=%.2f  %4.0f ms\n' "$text" "$(sed -n 's/.*"label":"\([^"]*\)".*/\1/p' <<<"$answer")" \
    "$(sed -n 's/.*"probability":\([0-9.e-]*\).*/\1/p' <<<"$answer")" "$(awk 'END{print $1*1000}' <<<"$answer")"
done
step "done. Try: kubectl get flywheel -n intent; http://intent.intent.svc (inside: $address:$port)"
echo "  export KUBECONFIG=$KUBECONFIG      make cluster-down ends the cluster"
