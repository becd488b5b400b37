#!/usr/bin/env python3
"""`make bench-drain`: what clients of a service notice while its pods come and go, on a running cluster.

An open loop offers the Service's address a steady rate (RATE=60 a second) for MINUTES=10, on connections that are kept alive and without
retries. Meanwhile, one after the other and again from the start: the pods are exchanged one by one for a change of the spec, the version is
changed, a pod is deleted, the service shrinks and grows again, and the server of a pod is killed (SIGKILL). Each request that is not
answered 200 is charged to the event in whose time it was due. Nothing is asserted: a missed goal is printed and written as missed.
"""
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cluster import get
from report import Report, cpu
from service import NAMESPACE, VERSIONS, figures, kubectl, load, patch, pods, serve, settled, train, until, write_bodies

SERVICE = "bench-drain"
REPLICAS = 3
RATE = float(os.environ.get("RATE") or 60)
MINUTES = float(os.environ.get("MINUTES") or 10)
# Seconds in which the pods are as before and clients may still notice what was.
AFTER = 5
KILL = "server of a pod killed"


def whole():
    """Waits until as many pods answer as are wanted."""
    wanted = get("infsvc", SERVICE, "-n", NAMESPACE)["spec"]["replicas"]
    ready = lambda pod: any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    until("the pods are whole", 180, lambda: sum(map(ready, pods(SERVICE))) == len(pods(SERVICE)) == wanted
          and get("infsvc", SERVICE, "-n", NAMESPACE)["status"].get("pods") == f"{wanted}/{wanted}")


def restart(_):
    names = lambda: {pod["metadata"]["name"] for pod in pods(SERVICE)}
    before = names()
    now = get("infsvc", SERVICE, "-n", NAMESPACE)["spec"]["server"]["maxConcurrency"]
    patch(SERVICE, {"server": {"maxConcurrency": 200 if now != 200 else 201}})
    until("no pod of the old template", 180, lambda: not names() & before)


def swap(turn):
    version = VERSIONS[(turn + 1) % 2]
    patch(SERVICE, {"modelVersion": version})
    settled(SERVICE, version)


def delete(_):
    kubectl("delete", "pod", "-n", NAMESPACE, pods(SERVICE)[0]["metadata"]["name"], "--wait=true")


def shrink(_):
    for replicas in (REPLICAS - 1, REPLICAS):
        patch(SERVICE, {"replicas": replicas})
        whole()


def kill(_):
    """The processes of this machine are those of the local cluster's pods, too."""
    pod = pods(SERVICE)[0]
    uid, restarts = pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]
    cgroup = lambda pid: (Path("/proc") / pid / "cgroup").read_text()
    is_ours = lambda pid: (Path("/proc") / pid / "comm").read_text().strip() == "flywheel-server" and uid in cgroup(pid).replace("_", "-")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if is_ours(pid):
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
    name = pod["metadata"]["name"]
    until("it is started again", 60, lambda: get("pod", name, "-n", NAMESPACE)["status"]["containerStatuses"][0]["restartCount"] > restarts)


EVENTS = (("pods exchanged one by one", restart), ("version changed", swap), ("pod deleted", delete), ("one pod fewer, one more", shrink), (KILL, kill))


def main():
    report = Report("drain")
    print(f"{cpu()}; {REPLICAS} pods, {RATE:g} requests a second for {MINUTES:g} minutes")
    train()
    serve(SERVICE, REPLICAS)
    address = get("service", SERVICE, "-n", NAMESPACE)["spec"]["clusterIP"]
    with tempfile.TemporaryDirectory() as scratch:
        bodies, answers = Path(scratch) / "bodies.jsonl", Path(scratch) / "answers.jsonl"
        write_bodies(bodies)
        process = load(f"{address}:80", bodies, RATE, 60 * MINUTES, answers)
        end, times = time.time() + 60 * MINUTES - 2 * AFTER, []
        time.sleep(AFTER)
        for turn, (name, event) in itertools.chain.from_iterable(((turn, e) for e in EVENTS) for turn in itertools.count()):
            if time.time() > end:
                break
            times.append((time.time(), name))
            print(f"  {name}", file=sys.stderr)
            event(turn)
            whole()
            time.sleep(AFTER)
        result = figures(process)
        lines = [json.loads(line) for line in open(answers)]
    judge(report, times, lines, result)
    report.write()
    kubectl("delete", "infsvc", SERVICE, "-n", NAMESPACE)


def judge(report, times, lines, result):
    offered, failed, why = Counter(), Counter(), {}
    for line in lines:
        name = next((name for at, name in reversed(times) if at <= line["at"]), "before")
        offered[name] += 1
        if line["status"] != 200:
            failed[name] += 1
            why.setdefault(name, Counter())[line["answer"][:60] if line["status"] == 0 else line["status"]] += 1
    for name, _ in EVENTS:
        happened = sum(event == name for _, event in times)
        note = "; ".join(f"{n} x {what}" for what, n in why.get(name, Counter()).most_common(3)) or None
        report.row(f"{name}: requests not answered 200", failed[name], f"of {offered[name]}", happened,
                   None if name == KILL else ("0", lambda v: v == 0), note)
    kills = max(1, sum(event == KILL for _, event in times))
    # At this rate and a latency of some 20 ms one or two requests are under way in a pod, and clients that have connections to it notice
    # its end at their next request.
    report.row(f"{KILL}: requests not answered 200, for each", failed[KILL] / kills, "", kills)
    report.row("p99 of all answers", result["milliseconds"][2], "ms", result["offered"])


main()
