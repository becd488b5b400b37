#!/usr/bin/env python3
"""`make bench-update`: how fast, and how unnoticed, the pods of a service change over to another version, on a running cluster.

Two versions with different answers are trained (once; they stay for the next run). An open loop then offers each pod a little, and then
70 % of the highest rate that it holds, on connections that are kept alive and without retries, while `kubectl patch` changes
`spec.modelVersion` to and fro, 20 times and SWAPS times (100). Of each answer the probabilities must be those of the version that it names. PODS= is the number of pods (1).
Nothing is asserted: a missed goal is printed and written as missed.
"""
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report import Report, cpu
from service import OBJECTIVE_MS, VERSIONS, figures, load, patch, serve, settled, train, write_bodies

SERVICE = "bench-update"
SWAPS = int(os.environ.get("SWAPS") or 100)
PODS = int(os.environ.get("PODS") or 1)
# Seconds between two patches. The first WINDOW of them hold the swap, the last WINDOW none.
PERIOD, WINDOW = 6, 2
# Requests a second that leave most of the processors to what is loaded, and the share of the highest rate that leaves little.
LITTLE, SHARE = 20, 0.7
QUIET_SWAPS = 20


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
        patch(SERVICE, {"modelVersion": version})
        settled(SERVICE, version)
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
    addresses = [f"{address}:8080" for address in serve(SERVICE, PODS)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bodies = folder / "bodies.jsonl"
        write_bodies(bodies)
        known = expected(addresses, bodies, folder)
        apart = [far(known[VERSIONS[0]][i], known[VERSIONS[1]][i]) for i in known[VERSIONS[0]] if i in known[VERSIONS[1]]]
        told = sum(d > 0.02 for d in apart)
        print(f"  {told} of {len(apart)} texts tell the versions apart by more than 0.02", file=sys.stderr)
        high = SHARE * highest_rate(addresses, bodies)
        for name, rate, swaps in ((f"at {LITTLE}/s", LITTLE, QUIET_SWAPS), (f"at {SHARE:.0%} of the highest rate", high, SWAPS)):
            patch(SERVICE, {"modelVersion": VERSIONS[0]})
            settled(SERVICE, VERSIONS[0])
            report.row(f"{name}: offered per pod", round(rate, 1), "/s")
            patches, results, lines = swap_under(addresses, bodies, folder, rate, swaps)
            judge(report, name, patches, lines, known)
            others = Counter()
            for result in results:
                others.update({status: n for status, n in result["statuses"].items() if status != "200"})
            report.row(f"{name}: requests that were not answered 200", sum(others.values()), "", sum(r["offered"] for r in results),
                       ("0", lambda v: v == 0), note=", ".join(f"{n} of status {status}" for status, n in sorted(others.items())) or None)
    report.write()


def swap_under(addresses, bodies, folder, rate, swaps):
    """Changes to and fro under load: when to what, the load's figures, and each pod's requests in order."""
    files = [folder / f"{i}.jsonl" for i in range(len(addresses))]
    loads = [load(a, bodies, rate, swaps * PERIOD + 4, f, seed) for seed, (a, f) in enumerate(zip(addresses, files), 1)]
    start, patches = time.time() + 2, []
    for swap in range(swaps):
        time.sleep(max(0, start + swap * PERIOD - time.time()))
        version = VERSIONS[(swap + 1) % 2]
        patches.append((time.time(), version))
        patch(SERVICE, {"modelVersion": version})
    results = [figures(p) for p in loads]
    return patches, results, [[json.loads(line) for line in open(file)] for file in files]


def judge(report, name, patches, pods, known):
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
    report.row(f"{name}: patch to the first new answer of every pod, p50", round(statistics.median(first), 2), "s", n)
    report.row(f"{name}: patch to the first new answer of every pod, p99", round(percentile(first, 99), 2), "s", n, ("<= 2", lambda v: v <= 2))
    report.row(f"{name}: patch to the first new answer of every pod, longest", round(max(first), 2), "s", n)
    report.row(f"{name}: swaps that were not over when the next began, after {PERIOD} s", late, "", n, ("0", lambda v: v == 0))
    report.row(f"{name}: patch to the last old answer, longest", round(max(last), 2), "s", n)
    report.row(f"{name}: answers that are not those of the version that they name", wrong, "", sum(map(len, answered)), ("0", lambda v: v == 0))
    slow = {which: 100 * slow / max(1, of) for which, (of, slow) in windows.items()}
    report.row(f"{name}: slower than {OBJECTIVE_MS} ms in equal windows without a swap", round(slow["none"], 3), "%", windows["none"][0])
    report.row(f"{name}: slower than {OBJECTIVE_MS} ms in the {WINDOW} s after a patch", round(slow["swap"], 3), "%", windows["swap"][0],
               ("<= without", lambda v: v <= slow["none"]))


main()
