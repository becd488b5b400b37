#!/usr/bin/env python3
"""`make bench-spine`: accuracy beside transformers, latencies of the spine on a running local cluster, weight of the operator.

ONLY=accuracy,latency,operator chooses parts; SEEDS=3 the number of seeds, THREADS= those of a training (all cores);
DATA=<folder with banking77's train.csv and test.csv> the data. Nothing is asserted: a missed goal is printed and written as missed.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import banking77
from banking77 import environment
from cluster import get, kubectl
from report import ROOT, Report, cpu


def accuracy(report):
    data = banking77.data()
    if not data:
        return
    seeds, threads = int(os.environ.get("SEEDS") or 3), int(os.environ.get("THREADS") or os.cpu_count() or 1)
    results = {"flywheel": [], "transformers": []}
    train = {"flywheel": banking77.flywheel,
             "transformers": lambda *a: banking77.transformers(*a, "--sampling", "group_by_length")}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(1, seeds + 1):
            folder = Path(scratch) / str(seed)
            banking77.write_sets(data, folder, seed)
            hyperparameters = {**banking77.HYPERPARAMETERS, "seed": seed}
            for who in results:
                results[who].append(train[who](folder, hyperparameters, threads))
                print(f"  seed {seed}: {who:<12} {results[who][-1]}", flush=True)
    mean = lambda who, what: sum(r[what] for r in results[who]) / len(results[who])
    for seed, (ours, theirs) in enumerate(zip(*results.values()), 1):
        report.row(f"banking77 test accuracy, seed {seed}, flywheel", ours["accuracy"], "", note=ours["precision"])
        report.row(f"banking77 test accuracy, seed {seed}, transformers", theirs["accuracy"], "", note="Float32")
    report.row("banking77 test accuracy, mean, flywheel", mean("flywheel", "accuracy"), "", seeds, (">= 0.905", lambda v: v >= 0.905))
    report.row("banking77 test accuracy, mean, transformers", mean("transformers", "accuracy"), "", seeds)
    report.row("transformers better by", 100 * (mean("transformers", "accuracy") - mean("flywheel", "accuracy")), "points", seeds,
               ("<= 0.5", lambda v: v <= 0.5))
    report.row("training CPU time, flywheel / transformers", mean("flywheel", "cpuSeconds") / mean("transformers", "cpuSeconds"), "ratio", seeds)


def seconds(stamp):
    return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def latency(report, runs=3):
    """On the running cluster, with images present: a small job of the example's data, then a service of its version."""
    template = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", ROOT / "examples/intent/training-job.yaml"))
    first, versions, ready = [], [], []
    for n in range(runs):
        name = f"bench-{int(time.time())}-{n}"
        job = json.loads(json.dumps(template))
        job["metadata"]["name"] = name
        job["spec"]["hyperparameters"]["epochs"] = 1
        job["spec"]["output"]["versionName"] = name
        job["spec"]["output"]["gates"] = []
        job["spec"]["output"]["reuse"] = "Never"
        start = time.time()
        kubectl("apply", "-f", "-", text=json.dumps(job))
        pod = None
        while time.time() - start < 300:
            pods = get("pods", "-n", "intent", "-l", f"flywheel.dev/training-job={name}")["items"]
            if pods and pods[0]["status"].get("podIP"):
                pod = pods[0]
                probe = subprocess.run(["curl", "-s", "-m", "1", f"http://{pod['status']['podIP']}:9090/progress"], capture_output=True, text=True)
                step = re.search(r'"step":(\d+)', probe.stdout)
                if step and int(step.group(1)) >= 1:
                    first.append(time.time() - start)
                    break
            time.sleep(0.1)
        if not pod:
            raise RuntimeError(f"{name} has no running pod after 300 s: kubectl describe tj {name} -n intent")
        ended = made = None
        while time.time() - start < 1200 and not made:
            if not ended:
                state = get("pod", "-n", "intent", pod["metadata"]["name"])["status"]
                terminated = (state.get("containerStatuses") or [{}])[0].get("state", {}).get("terminated")
                ended = time.time() if terminated else None
            if ended and kubectl("get", "modelversion", "-n", "intent", name, "--ignore-not-found", "-o", "name"):
                made = time.time()
            time.sleep(0.1)
        if not made:
            raise RuntimeError(f"{name} gave no ModelVersion in 1200 s: kubectl describe tj {name} -n intent")
        versions.append(made - ended)
        service = {"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name, "namespace": "intent"},
                   "spec": {"model": "intent", "modelVersion": name, "replicas": 1, "storage": job["spec"]["storage"]}}
        kubectl("apply", "-f", "-", text=json.dumps(service))
        kubectl("wait", "-n", "intent", f"inferenceservice/{name}", "--for=condition=Ready", "--timeout=120s")
        pods = get("pods", "-n", "intent", "-l", f"flywheel.dev/inference-service={name}")["items"]
        scheduled = next(c["lastTransitionTime"] for c in pods[0]["status"]["conditions"] if c["type"] == "PodScheduled")
        status = get("inferenceservice", "-n", "intent", name)["status"]
        went = next(c["lastTransitionTime"] for c in status["conditions"] if c["type"] == "Ready")
        ready.append(seconds(went) - seconds(scheduled))
        kubectl("delete", "-n", "intent", f"inferenceservice/{name}", f"trainingjob/{name}", "--wait=true")
    middle = lambda v: float(sorted(v)[len(v) // 2])
    for what, values, goal in (("kubectl apply to first training step", first, 15), ("training pod's end to ModelVersion", versions, 5),
                               ("serving pod scheduled to InferenceService Ready (whole seconds)", ready, 10)):
        report.row(what + ", median", middle(values), "s", len(values), (f"<= {goal}", lambda v, g=goal: v <= g))
        report.row(what + ", maximum", float(max(values)), "s", len(values), (f"<= {goal}", lambda v, g=goal: v <= g))


WRITTEN = ("trainingjobs", "modelversions", "inferenceservices", "jobs", "deployments", "services", "configmaps", "networkpolicies",
           "poddisruptionbudgets", "controllerrevisions", "events")


def writes():
    """Writes so far to the kinds that the operator may write, from the API server's own counters."""
    total = 0
    for line in kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and labels["resource"] in WRITTEN:
                total += float(line.rsplit(" ", 1)[1])
    return int(total)


def operator(report, minutes=None):
    binary = Path(environment("OPERATOR"))
    report.row("operator: stripped release binary", binary.stat().st_size / 2**20, "MiB", 1, ("<= 30", lambda v: v <= 30))
    minutes = float(os.environ.get("MINUTES") or 15)
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and (p / "comm").exists()
            and (p / "comm").read_text().strip() == "flywheel-operat"]
    if not pids:
        print("operator: none runs on this machine; start a cluster with 50 nodes and released images (make cluster KWOK=47; make install PROFILE=release)", file=sys.stderr)
        return
    nodes = len(get("nodes")["items"])
    started = max(int((Path("/proc") / str(p) / "stat").read_text().rsplit(")", 1)[1].split()[19]) for p in pids) / os.sysconf("SC_CLK_TCK")
    time.sleep(max(0.0, minutes * 60 - (float(Path("/proc/uptime").read_text().split()[0]) - started)))
    peak = max(int(re.search(r"VmHWM:\s*(\d+)", (Path("/proc") / str(p) / "status").read_text()).group(1)) for p in pids) / 1024
    report.row(f"operator: VmHWM of the larger replica, {minutes:g} minutes after start, {nodes} nodes", peak, "MiB", len(pids),
               ("<= 40", lambda v: v <= 40))
    before = writes()
    time.sleep(60)
    report.row("operator: writes in a quiet minute, all kinds it may write but its Lease", writes() - before, "writes", 1,
               ("0", lambda v: v == 0))


def main():
    only = (os.environ.get("ONLY") or "accuracy,latency,operator").split(",")
    report = Report("spine")
    print(f"bench-spine on {cpu()}")
    for name, part in (("accuracy", accuracy), ("latency", latency), ("operator", operator)):
        if name in only:
            part(report)
            report.write()


if __name__ == "__main__":
    main()
