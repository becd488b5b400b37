"""A service of two versions with different answers, and load on it, for benchmarks on a running cluster."""
import json
import subprocess
import sys
import time
from pathlib import Path

from banking77 import environment
from cluster import get, kubectl
from report import ROOT

NAMESPACE = "intent"
VERSIONS = ["bench-update-1", "bench-update-2"]
OBJECTIVE_MS = 200


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
        job["spec"]["output"].update(versionName=name, gates=[], reuse="Never")
        kubectl("apply", "-f", "-", text=json.dumps(job))
    for name in VERSIONS:
        until(f"{name} is verified", 600, lambda: kubectl("get", "mv", name, "-n", NAMESPACE, check=False) and true("mv", name, "Verified"))
        print(f"  {name} is trained and verified", file=sys.stderr)


def serve(name, replicas):
    """Makes the service and waits until every pod answers; their addresses."""
    service = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", ROOT / "examples/intent/inference-service.yaml"))
    service["metadata"]["name"] = name
    service["spec"].update(modelVersion=VERSIONS[0], replicas=replicas)
    kubectl("apply", "-f", "-", text=json.dumps(service))
    return settled(name, VERSIONS[0])


def pods(name):
    """Its pods that are not ending."""
    found = get("pods", "-n", NAMESPACE, "-l", f"flywheel.dev/inference-service={name}")["items"]
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def settled(name, version):
    """Waits until every pod answers with the version; the pods' addresses."""
    until(f"all answer with {version}", 300, lambda: true("infsvc", name, "Ready")
          and get("infsvc", name, "-n", NAMESPACE)["status"].get("modelVersion") == version)
    return [pod["status"]["podIP"] for pod in pods(name)]


def patch(name, spec):
    kubectl("patch", "infsvc", name, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"spec": spec}))


def write_bodies(file):
    """Texts of the example's test set, as bodies of requests."""
    rows = (Path(environment("EXAMPLE")) / "data/test.csv").read_text().splitlines()[1:]
    texts = [row.rsplit(",", 1)[0].strip('"') for row in rows][:200]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def load(address, bodies, rate, seconds, answers=None, seed=1):
    command = [environment("LOADGEN"), "--address", address, "--bodies", str(bodies), "--rate", str(rate), "--seconds", str(seconds),
               "--objective-milliseconds", str(OBJECTIVE_MS), "--seed", str(seed), *(["--answers", str(answers)] if answers else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def figures(process):
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the load generator failed")
    return json.loads(out)
