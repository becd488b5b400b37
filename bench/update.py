#!/usr/bin/env python3
"""`make bench-update`: how fast, and how unnoticed, the pods of a service change over to another version, on a running cluster.

Two versions with different answers are trained (once; they stay for the next run). An open loop then offers each pod 70 % of the highest
rate that it holds, on connections that are kept alive and without retries, while `kubectl patch` changes `spec.modelVersion` to and fro
SWAPS times (100). Of each answer the probabilities must be those of the version that it names. PODS= is the number of pods (1).
Nothing is asserted: a missed goal is printed and written as missed.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from banking77 import environment
from cluster import get, kubectl
from report import ROOT, Report, cpu

NAMESPACE, SERVICE = "intent", "bench-update"
VERSIONS = ["bench-update-1", "bench-update-2"]
SWAPS = int(os.environ.get("SWAPS") or 100)
PODS = int(os.environ.get("PODS") or 1)
# Seconds between two patches. The first WINDOW of them hold the swap, the last WINDOW none.
PERIOD, WINDOW = 6, 2
OBJECTIVE_MS, SHARE = 200, 0.7


def until(what, limit, ready):
    start = time.time()
    while time.time() - start < limit:
        value = ready()
        if value:
            return value
        time.sleep(0.5)
    raise RuntimeError(f"{what}: not within {limit} s")


def true(kind, name, condition):
    found = [c for c in get(kind, name, "-n", NAMESPACE).get("status", {}).get("conditions", []) if c["type"] == condition]
    return bool(found) and found[0]["status"] == "True"


def train():
    template = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", ROOT / "examples/intent/training-job.yaml"))
    for seed, name in enumerate(VERSIONS, 1):
        job = json.loads(json.dumps(template))
        job["metadata"]["name"] = name
        job["spec"]["hyperparameters"].update(epochs=1, seed=seed)
        job["spec"]["output"].update(versionName=name, gates=[])
        kubectl("apply", "-f", "-", text=json.dumps(job))
    for name in VERSIONS:
        until(f"{name} is verified", 600, lambda: kubectl("get", "mv", name, "-n", NAMESPACE, check=False) and true("mv", name, "Verified"))
        print(f"  {name} is trained and verified", file=sys.stderr)


def serve():
    service = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", ROOT / "examples/intent/inference-service.yaml"))
    service["metadata"]["name"] = SERVICE
    service["spec"].update(modelVersion=VERSIONS[0], replicas=PODS)
    kubectl("apply", "-f", "-", text=json.dumps(service))
    return settled(VERSIONS[0])


def settled(version):
    """Waits until every pod answers with the version; the pods' addresses."""
    until(f"all answer with {version}", 300, lambda: true("infsvc", SERVICE, "Ready")
          and get("infsvc", SERVICE, "-n", NAMESPACE)["status"].get("modelVersion") == version)
    pods = get("pods", "-n", NAMESPACE, "-l", f"flywheel.dev/inference-service={SERVICE}")["items"]
    return [pod["status"]["podIP"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def patch(version):
    kubectl("patch", "infsvc", SERVICE, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"spec": {"modelVersion": version}}))


def load(address, bodies, rate, seconds, answers=None, seed=1):
    command = [environment("LOADGEN"), "--address", f"{address}:8080", "--bodies", str(bodies), "--rate", str(rate), "--seconds", str(seconds),
               "--objective-milliseconds", str(OBJECTIVE_MS), "--seed", str(seed), *(["--answers", str(answers)] if answers else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def figures(process):
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the load generator failed")
    return json.loads(out)


def highest_rate(addresses, bodies):
    """Requests per second and pod of which 99 % are answered within the objective, all pods under load at once."""
    held, rate = 0, 40
    while True:
        results = [figures(p) for p in [load(a, bodies, rate, 5) for a in addresses]]
        within = min(r["within"] for r in results)
        print(f"  {rate:6.0f}/s per pod: {100 * within:5.1f} % in time", file=sys.stderr)
        if within < 0.99:
            return held
        held, rate = rate, rate * 1.25


def expected(addresses, bodies, folder):
    """What each version answers to each text: one request at a time, so that nothing is shed."""
    answers = []
    for version in VERSIONS:
        patch(version)
        settled(version)
        file = folder / f"{version}.jsonl"
        figures(load(addresses[0], bodies, 20, len(bodies.read_text().splitlines()) / 20 + 10, file))
        answers.append({line["body"]: json.loads(line["answer"])["all_probs"] for line in map(json.loads, open(file)) if line["status"] == 200})
    return dict(zip(VERSIONS, answers))


def far(a, b):
    return max(abs(a[label] - b[label]) for label in a)


def main():
    report = Report("update", command="bench-update")
    print(f"{cpu()}; {PODS} pod(s), {SWAPS} swaps")
    train()
    addresses = serve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bodies = folder / "bodies.jsonl"
        rows = (Path(environment("EXAMPLE")) / "data/test.csv").read_text().splitlines()[1:]
        texts = [row.rsplit(",", 1)[0].strip('"') for row in rows][:200]
        bodies.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        known = expected(addresses, bodies, folder)
        apart = [far(known[VERSIONS[0]][i], known[VERSIONS[1]][i]) for i in known[VERSIONS[0]] if i in known[VERSIONS[1]]]
        told = sum(d > 0.02 for d in apart)
        print(f"  {told} of {len(apart)} texts tell the versions apart by more than 0.02", file=sys.stderr)
        rate = SHARE * highest_rate(addresses, bodies)
        patch(VERSIONS[0])
        settled(VERSIONS[0])
        seconds = SWAPS * PERIOD + 4
        files = [folder / f"{i}.jsonl" for i in range(len(addresses))]
        loads = [load(a, bodies, rate, seconds, f, seed) for seed, (a, f) in enumerate(zip(addresses, files), 1)]
        start, patches = time.time() + 2, []
        for swap in range(SWAPS):
            time.sleep(max(0, start + swap * PERIOD - time.time()))
            version = VERSIONS[(swap + 1) % 2]
            patches.append((time.time(), version))
            patch(version)
        results = [figures(p) for p in loads]
        lines = [[json.loads(line) for line in open(file)] for file in files]
    judge(report, rate, patches, lines, known)
    others = Counter()
    for result in results:
        others.update({status: n for status, n in result["statuses"].items() if status != "200"})
    report.row("requests that were not answered 200", sum(others.values()), "", sum(r["offered"] for r in results), ("0", lambda v: v == 0),
               note=", ".join(f"{n} of status {status}" for status, n in sorted(others.items())) or None)
    report.write()


def judge(report, rate, patches, pods, known):
    wrong, late, first, last = 0, 0, [], []
    windows = {"swap": [0, 0], "none": [0, 0]}
    answered = []
    for lines in pods:
        mine = []
        for line in lines:
            offset = next((line["at"] - at for at, _ in reversed(patches) if at <= line["at"]), None)
            if offset is not None:
                window = "swap" if offset < WINDOW else "none" if offset >= PERIOD - WINDOW and offset < PERIOD else None
                if window:
                    windows[window][0] += 1
                    windows[window][1] += line["status"] != 200 or line["latency"] * 1000 > OBJECTIVE_MS
            if line["status"] == 200:
                answer = json.loads(line["answer"])
                probabilities = known[answer["model_version"]].get(line["body"])
                wrong += probabilities is not None and far(answer["all_probs"], probabilities) > 1e-3
                mine.append((line["at"] + line["latency"], answer["model_version"]))
        answered.append(sorted(mine))
    for (at, version), (until_at, _) in zip(patches, patches[1:] + [(patches[-1][0] + PERIOD, None)]):
        # Until the first answer of the slowest pod, and until nobody answers with the old one any more.
        new = [next((t - at for t, v in mine if at <= t < until_at and v == version), None) for mine in answered]
        old = [max((t - at for t, v in mine if at <= t < until_at and v != version), default=0) for mine in answered]
        # One that was not over when the next began took at least that long.
        late += any(n is None for n in new)
        first.append(max(PERIOD if n is None else n for n in new))
        last.append(max(old))
    percentile = lambda values, p: sorted(values)[min(len(values) - 1, -(-len(values) * p // 100) - 1)]
    n = len(patches)
    report.row("offered rate per pod", round(rate, 1), "/s", note=f"{SHARE:.0%} of the highest of which 99 % are answered within {OBJECTIVE_MS} ms")
    report.row("patch to the first new answer of every pod, p50", round(statistics.median(first), 2), "s", n)
    report.row("patch to the first new answer of every pod, p99", round(percentile(first, 99), 2), "s", n, ("<= 2", lambda v: v <= 2))
    report.row("patch to the first new answer of every pod, longest", round(max(first), 2), "s", n)
    report.row(f"swaps that were not over when the next began, after {PERIOD} s", late, "", n, ("0", lambda v: v == 0))
    report.row("patch to the last old answer, longest", round(max(last), 2), "s", n)
    report.row("answers that are not those of the version that they name", wrong, "", sum(map(len, answered)), ("0", lambda v: v == 0))
    slow = {name: 100 * slow / max(1, of) for name, (of, slow) in windows.items()}
    report.row(f"slower than {OBJECTIVE_MS} ms in equal windows without a swap", round(slow["none"], 3), "%", windows["none"][0])
    report.row(f"slower than {OBJECTIVE_MS} ms in the {WINDOW} s after a patch", round(slow["swap"], 3), "%", windows["swap"][0],
               ("<= without", lambda v: v <= slow["none"]))


main()
