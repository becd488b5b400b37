"""The loop on banking77, on a running cluster, for `make bench-flywheel ONLY=loop`.

A version lacks five of the 77 intents. Clients ask its service what it knows, then three texts of ten are of the five; once drift is
declared they say what would have been right; a version that learnt it comes by steps. Then somebody trains on wrong data: in a batch
of what clients asked one intent, which the golden set lacks, is called another one, and a version is trained on it and the first rows
as the retraining was; and in the same batch labels are exchanged at random, and the version that answers is trained further on it.

Train.csv is divided: what versions are trained on, what clients ask until the training has read what they said, and what they ask from
then on, so that neither version knows the texts by which they are compared. Accuracy is measured on test.csv alone, which no version
is trained on and no client judges; it is asked through the service, in the same mix as what clients ask. Each request is made once,
without another try, and each answer that is not 200 is counted.
"""
import csv
import itertools
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import banking77
from banking77 import environment
from cluster import get, kubectl
from report import ROOT
from service import until

sys.path.insert(0, str(ROOT / "examples/intent"))

NAMESPACE, NAME, KEY = "bench-flywheel", "banking", "banking77"
# Every sixteenth intent is new: each is six texts of a hundred then.
NEW_OF = 16
# Texts of a request, how many of them are new once there are some, and requests a second.
BATCH, NEW, RATE = 20, 6, 3
# Known texts that are trained on or validate, and that clients ask first; and the share of new ones that they ask first.
TRAINED, FIRST, FIRST_NEW = 3200, 1500, 0.6
# So few rows and epochs, at such a rate, since two cores do all of it.
HYPERPARAMETERS = {"epochs": 3, "batchSize": 16, "learningRate": "3e-4", "warmupRatio": "0.1"}
# On a batch of what clients asked the version that answers is trained further.
FURTHER = {**HYPERPARAMETERS, "epochs": 2, "learningRate": "2e-4"}
# The first window is what all others are compared with: a short one hides what is new.
DRIFT = {"windowSeconds": 30, "minSamples": 1000}
FEEDBACK = 3000
# Judged predictions of both: by these a version is told apart that is wrong in one intent.
CANARY = {"steps": [{"weightPercent": 50, "durationSeconds": 5, "minRequests": 100}], "analysis": {"minSamples": 6000}}
SOON, TRAINING = 600, 1800


def rows(path):
    return [(r["text"], r.get("category") or r["label"]) for r in csv.DictReader(open(path, newline="", encoding="utf-8"))]


def intents(data):
    return sorted({label for _, label in rows(data / "test.csv")})


class Sets:
    """Who gets which texts."""

    def __init__(self, data):
        self.new = intents(data)[::NEW_OF]
        # One of the new intents, and what somebody calls it.
        self.wronged, self.called = self.new[1], self.new[-1]
        train, test = rows(data / "train.csv"), rows(data / "test.csv")
        random.Random(7).shuffle(train)
        known, new = self.parted(train)
        tenth, first = TRAINED // 10, int(FIRST_NEW * len(new))
        self.train, self.validation = known[tenth:TRAINED], known[:tenth]
        self.first = (known[TRAINED:TRAINED + FIRST], new[:first])
        self.then = (known[TRAINED + FIRST:], new[first:])
        self.test = self.parted(test)

    def parted(self, of):
        return [row for row in of if row[1] not in self.new], [row for row in of if row[1] in self.new]

    def write(self, folder):
        """What is in the object store. The golden set is that of the intents that there were."""
        batch = self.first[0] + self.first[1]
        kept = itertools.count()
        # A dozen rows stay right, so that the versions know the same intents.
        wronged = [(text, self.called if label == self.wronged and next(kept) >= 12 else label) for text, label in batch]
        labels = random.Random(7).sample([label for _, label in batch], len(batch))
        crude = [(text, label) for (text, _), label in zip(batch, labels)]
        # Every third, since each training measures two versions on both.
        few = self.test[0][::3]
        sets = {"train": self.train, "validation": self.validation, "test": few, "golden": few, "wronged": wronged, "crude": crude}
        (folder / KEY).mkdir()
        for name, of in sets.items():
            with open(folder / KEY / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *of])


class Clients:
    """They ask, and judge once they are told to, until they are told to stop."""

    def __init__(self, address, sets):
        self.address, self.sets = address, sets
        self.texts = self.judged = 0
        self.failed, self.versions = Counter(), defaultdict(lambda: [0, 0, 0.0])
        self.new, self.judge, self.over = threading.Event(), threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.ask(sets.first)
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def ask(self, texts):
        """Which texts they have, known and new ones."""
        self.pools = tuple(map(itertools.cycle, texts))

    def post(self, path, body):
        """The answer to one try; None, and counted, where it is not 200."""
        request = urllib.request.Request(f"{self.address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            failure = f"{path} {error.code}"
        except OSError as error:
            failure = f"{path} {error}"
        with self.lock:
            self.failed[failure] += 1
        return None

    def run(self):
        while not self.over.is_set():
            begun = time.monotonic()
            known, new = self.pools
            batch = [next(new if self.new.is_set() and n < NEW else known) for n in range(BATCH)]
            self.once(batch)
            time.sleep(max(0.0, 1 / RATE - (time.monotonic() - begun)))

    def once(self, batch):
        judges = self.judge.is_set()
        answer = self.post("/predict", {"texts": [text for text, _ in batch]})
        with self.lock:
            self.texts += len(batch)
        if not answer or not judges:
            return
        told = list(zip(answer["predictions"], [label for _, label in batch]))
        results = self.post("/feedback", {"feedback": [{"request_id": p["request_id"], "label": label} for p, label in told]})
        with self.lock:
            self.judged += sum(r["outcome"] == "Counted" for r in (results or {"results": []})["results"])
            for prediction, label in told:
                seen = self.versions[prediction["model_version"]]
                seen[0] += 1
                seen[1] += prediction["label"] == label
                seen[2] = time.monotonic()

    def accuracy(self):
        """Shares of right answers to test.csv, of the known intents and of the mix; and how many texts they are of."""
        known, new = self.sets.test
        each = BATCH - NEW
        cycled = itertools.cycle(new)
        right = Counter()
        asked = Counter()
        for at in range(0, len(known), each):
            batch = known[at:at + each] + [next(cycled) for _ in range(NEW)]
            answer = self.post("/predict", {"texts": [text for text, _ in batch]})
            with self.lock:
                self.texts += len(batch)
            for n, (prediction, (_, label)) in enumerate(zip((answer or {"predictions": []})["predictions"], batch)):
                which = "known" if n < len(batch) - NEW else "new"
                asked[which] += 1
                right[which] += prediction["label"] == label
        share = {which: right[which] / asked[which] for which in asked}
        return share["known"], (NEW * share["new"] + each * share["known"]) / BATCH, len(known) + len(new)


def manifest(file):
    return json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", ROOT / "examples/learning" / file))


def apply(body):
    kubectl("apply", "-f", "-", text=json.dumps(body))


def secret(name, data):
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": data})


def source(name):
    return [{"uri": f"s3://flywheel/{KEY}/{name}.csv"}]


def training(name, further=None, **changes):
    """A training from the encoder, or further from a version."""
    job = manifest("training-job.yaml")
    job["metadata"]["name"] = name
    job["spec"]["dataset"] = {"sources": source("train"), "validation": source("validation"), "test": source("test"), "golden": source("golden"),
                              **changes.pop("dataset", {})}
    job["metadata"]["namespace"] = NAMESPACE
    job["spec"]["hyperparameters"].update(FURTHER if further else HYPERPARAMETERS)
    if further:
        job["spec"]["model"] = {"fromVersion": further}
    job["spec"]["output"].update(model=NAME, versionName=f"{NAME}-v1", uri=f"s3://flywheel/models/{NAME}", gates=[])
    job["spec"]["output"].update(changes)
    return job


def status():
    return get("infsvc", NAME, "-n", NAMESPACE).get("status", {})


def condition(of, kind):
    return next((c for c in of.get("conditions", []) if c["type"] == kind), {"status": "", "reason": "", "message": ""})


def reason(kind, wanted, limit=SOON):
    """Waits until the service's condition is so; its message."""
    def look():
        found = condition(status(), kind)
        return found["reason"] == wanted and found
    return until(f"{kind} is {wanted}", limit, look)["message"]


def trained(name):
    """Waits until a training is over; its version, and the seconds that it took from now on."""
    def look():
        found = get("tj", name, "-n", NAMESPACE)["status"]
        if condition(found, "Failed")["status"] == "True":
            raise RuntimeError(f"{name}: {condition(found, 'Failed')['message']}")
        return condition(found, "Complete")["status"] == "True" and found["result"]["modelVersion"]
    begun = time.monotonic()
    return until(f"{name} is trained", TRAINING, look), time.monotonic() - begun


def gates(version):
    """Waits until a version's gates are judged; reason and message."""
    def look():
        found = condition(get("mv", version, "-n", NAMESPACE).get("status", {}), "Promotable")
        return found["status"] in ("True", "False") and f"{found['reason']}: {found['message']}"
    return until(f"{version} is judged", SOON, look)


def pods():
    found = get("pods", "-n", NAMESPACE, "-l", f"flywheel.dev/inference-service={NAME}")["items"]
    return {(pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in found}


def say(words):
    print(f"  {time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def measure(report):
    data = banking77.data()
    if not data:
        return
    from prepare import upload

    sets = Sets(data)
    # What an earlier run left.
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=110s")
    subprocess.run([ROOT / "scripts/object-store.sh"], check=True)
    namespace = manifest("namespace.yaml")
    namespace["metadata"]["name"] = NAMESPACE
    apply(namespace)
    secret("object-store", {name: environment(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")})
    secret("receipts", {"key": secrets.token_hex(32)})
    with tempfile.TemporaryDirectory() as scratch:
        sets.write(Path(scratch))
        upload(Path(scratch), "flywheel")
    apply(training(NAME))
    service = manifest("inference-service.yaml")
    service["metadata"].update(name=NAME, namespace=NAMESPACE)
    service["spec"].update(model=NAME, modelVersion=f"{NAME}-v1", drift=DRIFT)
    service["spec"]["retrain"].update(trainingJob=NAME, minFeedback=FEEDBACK)
    apply(service)
    say(f"a first version is trained on {len(sets.train)} rows without {', '.join(sets.new)}")
    _, took = trained(NAME)
    report.row("loop: training of the first version", took, "s", 1, None,
               f"{HYPERPARAMETERS['epochs']} epochs of {len(sets.train)} rows without {len(sets.new)} intents; images of profile {os.environ.get('PROFILE')}")
    until("two pods answer", SOON, lambda: status().get("pods") == "2/2")
    before = pods()
    address = "http://" + get("service", NAME, "-n", NAMESPACE)["spec"]["clusterIP"]
    with Clients(address, sets) as clients:
        version = learns(report, clients, sets)
        poisoned(report, clients, sets, version)
    report.row("loop: requests that failed, once around and with wrong data", sum(clients.failed.values()), "", clients.texts // BATCH, ("0", lambda v: v == 0),
               f"of {clients.texts} texts, {clients.judged} of them judged; no request was tried again; " + ", ".join(f"{n} of {what}" for what, n in clients.failed.items()))
    report.row("loop: pods exchanged or begun anew", len(before ^ pods()), "", len(before), ("0", lambda v: v == 0))
    kubectl("delete", "namespace", NAMESPACE, "--timeout=110s")


def learns(report, clients, sets):
    """Once around; the version that came of it."""
    reason("DriftDetected", "NoDrift")
    say("what is usual is learnt; new intents come")
    begun = time.monotonic()
    clients.new.set()
    told = reason("DriftDetected", "Drifted")
    report.row("loop: 30 % new intents to declared drift", time.monotonic() - begun, "s", 1, None, f"windows of {DRIFT['windowSeconds']} s; {told}")
    report.row("loop: labels that had come by then", clients.judged, "", 1, ("0", lambda v: v == 0))
    say(told)
    reason("Retraining", "WaitingForFeedback")
    known, mix, texts = clients.accuracy()
    say(f"right: {known:.3f} of known intents, {mix:.3f} of the mix; clients judge")
    begun = time.monotonic()
    clients.judge.set()
    reason("Retraining", "RetrainingRunning")
    report.row("loop: first label to a training", time.monotonic() - begun, "s", 1, None, f"retrain.minFeedback is {FEEDBACK}, clients ask {BATCH * RATE} texts a second")
    job = status()["retraining"]["trainingJob"]
    until("its first step", SOON, lambda: get("tj", job, "-n", NAMESPACE)["status"].get("progress", {}).get("step"))
    # It has read what it learns from; what is judged from now on is new to it.
    clients.ask(sets.then)
    say(f"{job} trains")
    version, took = trained(job)
    say(f"{version}: {gates(version)}")
    came = until("it answers all", SOON, lambda: status().get("modelVersion") == version and time.monotonic())
    report.row("loop: first label to the new version answering all", came - begun, "s", 1, None,
               f"{took:.0f} s of it training, on two cores that pods, clients and others share; {gates(version)}")
    known_then, mix_then, _ = clients.accuracy()
    say(f"right: {known_then:.3f} of known intents, {mix_then:.3f} of the mix")
    for name, value in (("mix, first version", mix), ("mix, second version", mix_then), ("known intents, first version", known), ("known intents, second version", known_then)):
        report.row(f"loop: right answers to test texts, {name}", 100 * value, "%", texts if name.startswith("mix") else len(sets.test[0]))
    report.row("loop: gained on the mix", 100 * (mix_then - mix), "points", texts, (">= 15", lambda v: v >= 15))
    report.row("loop: lost on known intents", 100 * (known - known_then), "points", len(sets.test[0]), ("<= 2", lambda v: v <= 2))
    return version


def poisoned(report, clients, sets, serving):
    """Wrong data, and no other training meanwhile."""
    kubectl("patch", "infsvc", NAME, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"spec": {"rollout": CANARY, "retrain": {"cooldownSeconds": 86400}}}))
    # The gates that a retraining gets by itself where it has a golden set and a test set.
    default = [{"metric": "golden/accuracy", "minDelta": "-0.02"}, {"metric": "test/accuracy", "minDelta": "-0.02"}]
    def judged(name, further=None):
        sources = source(name) if further else source("train") + source(name)
        apply(training(name, further=further, dataset={"sources": sources}, versionName=f"{NAME}-{name}", incumbent=serving, gates=default))
        say(f"{name}: trains")
        trained(name)
        told = gates(f"{NAME}-{name}")
        say(told)
        return told

    told = judged("wronged")
    report.row("loop: one intent called another one: the default gates hold", int(told.startswith("GatesPassed")), "", 1, ("1", lambda v: v == 1), told)
    rejected(report, clients, sets, serving, f"{NAME}-wronged")
    told = judged("crude", further=serving)
    report.row("loop: labels exchanged at random: refused by the gates", int(told.startswith("GatesFailed")), "", 1, ("1", lambda v: v == 1), told)
    report.row("loop: labels exchanged at random: texts that it answered", clients.versions[f"{NAME}-crude"][0], "", 1, ("0", lambda v: v == 0))


def rejected(report, clients, sets, serving, version):
    """A version that comes by steps, until clients have said enough of it."""
    with clients.lock:
        clients.versions.clear()
    begun = time.monotonic()

    def look():
        found = get("mv", version, "-n", NAMESPACE)
        promoted = status().get("modelVersion") == version
        return found["metadata"].get("annotations", {}).get("flywheel.dev/rejected") or promoted and "promoted"
    why = until("the canary is judged", 1800, look)
    took = time.monotonic() - begun
    say(why)
    row = "loop: one intent called another one: rejected as a canary by what clients say"
    report.row(row, int(why != "promoted"), "", 1, ("1", lambda v: v == 1), f"{sets.wronged} called {sets.called}, at {took:.0f} s; {why}")
    if why != "promoted":
        quiet = lambda: time.monotonic() - clients.versions[version][2] > 20
        until("nobody is answered with it", 120, quiet)
    with clients.lock:
        for name, of in (("it", version), ("the version before it", serving)):
            judged, right, _ = clients.versions[of]
            report.row(f"loop: one intent called another one: right as clients see it, {name}", 100 * right / judged, "%", judged)
        last = clients.versions[version][2] - begun - took
    if why != "promoted":
        report.row("loop: one intent called another one: last answer after the rejection was seen", max(0.0, last), "s", 1, ("<= 33", lambda v: v <= 33))
