#!/usr/bin/env python3
"""`make bench-scale`: how many objects one operator carries, on a running local cluster with fake nodes (KWOK): simulated.

ONLY=jobs,writes,memory,start,large,loss,fair chooses parts. OBJECTS=1000, LARGE=10000 objects in `large` and `start`, REPEAT=3 runs of each kind in
`jobs`, NODES=148 fake nodes, LOSS_NODES=1000 of them in `loss`, TRIALS=20 jobs in `fair`, MINUTES=2 of steady state. docs/capacity.md says what each part
measures. Nothing is asserted: a missed goal is printed and written as missed.
"""
import contextlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from api import TOGETHER, Answer, Api, until
from banking77 import environment
from fakes import INSIDE_PORT, FakeNodes, FakePods, NODES as NODES_PATH
from report import Report, cpu

number = lambda name, default: int(os.environ.get(name) or default)
OBJECTS, LARGE, REPEAT, TRIALS = number("OBJECTS", 1000), number("LARGE", 10000), number("REPEAT", 3), number("TRIALS", 20)
FAKE_NODES, LOST_FROM = number("NODES", 148), number("LOSS_NODES", 1000)
STEADY = 60 * float(os.environ.get("MINUTES") or 2)

TRAININGS, SERVICES, VERSIONS = [f"/apis/flywheel.dev/v1alpha1/namespaces/{{}}/{kind}" for kind in ("trainingjobs", "inferenceservices", "modelversions")]
JOBS, PODS, MAPS = "/apis/batch/v1/namespaces/{}/jobs", "/api/v1/namespaces/{}/pods", "/api/v1/namespaces/{}/configmaps"
BARE = "/apis/bench.flywheel.dev/v1/namespaces/{}/barejobs"
CRDS, NAMESPACES = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "/api/v1/namespaces"
OPERATORS, ADMIN_PORT = "/api/v1/namespaces/flywheel-system/pods", 8081
MARK = "scale.flywheel.dev/bench"
# What of a Job's pod template belongs to its Job or to Flywheel, and is not in that of another one.
OF_ITS_JOB = re.compile(r"flywheel\.dev/|batch\.kubernetes\.io/|app\.kubernetes\.io/|controller-uid$|job-name$")
VERSION, DIGEST = "intent-v1", "sha256:" + "0" * 64
CONTROL_PLANE = {"etcd": "etcd", "kube-apiserver": "apiserver", "kube-controller": "controller-manager", "kube-scheduler": "scheduler", "kwok": "kwok"}
TICK = os.sysconf("SC_CLK_TCK")
# Seconds from a creation to Running: of all in a part, and of one object beside that.
WITHIN, EACH = 120, 1.0
# What the brake of recovery holds at: a larger part of the nodes.
LOST, TOO_MANY = 0.10, 0.35
# Seconds for which nothing may be deleted then.
HELD = 120
# Edits a minute of a noisy neighbour.
EDITS = 5000
# Seconds for which nothing may be written before a measurement.
CALM = 5
# Cores that a control plane at rest uses at most, over so many seconds.
RESTS, RESTED = 0.25, 3
# Kinds that the operator makes for an object. The rest are the objects themselves and events.
OWN = {"TrainingJob", "InferenceService", "ModelVersion", "Event"}


# --- processes --------------------------------------------------------------------------------------------------------
def pids(accept):
    """Processes whose environment has this."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if accept(folder.joinpath("comm").read_text().strip(), folder.joinpath("environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
            except OSError:
                pass  # it ended meanwhile
    return found


def stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def processor(pid):
    """Seconds of processor that it has used."""
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK


def peak(pid):
    """The most memory that it has had, in MiB (VmHWM)."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def connections(pid):
    """Its connections to pods that are open, and its open files."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    port, established = f"{INSIDE_PORT:04X}", "01"
    to_pods = sum(1 for f in map(str.split, lines) if f[2].endswith(":" + port) and f[3] == established)
    return to_pods, len(os.listdir(f"/proc/{pid}/fd"))


class ControlPlane:
    """Processor time of the cluster's parts, and of one more process."""

    def __init__(self, **more):
        marker = f"FLYWHEEL_LOCALCLUSTER={Path(environment('KUBECONFIG')).parent}".encode()
        self.parts = {CONTROL_PLANE[Path(f"/proc/{p}/comm").read_text().strip()]: p for p in pids(lambda c, e: c in CONTROL_PLANE and marker in e)}
        self.parts.update(more)
        self.before = {}

    def start(self):
        self.before = {part: processor(pid) for part, pid in self.parts.items()}

    def rest(self, within=120):
        """Waits until all together do next to nothing: what a deletion or a new kind brings with it lasts."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self.start()
            time.sleep(RESTED)
            if sum(self.used().values()) < RESTS * RESTED:
                return
        print(f"  no rest after {within} s", file=sys.stderr)

    def used(self):
        return {part: processor(pid) - self.before[part] for part, pid in self.parts.items()}


# --- the operator -----------------------------------------------------------------------------------------------------
class Replica:
    """One pod of the operator."""

    def __init__(self, pod):
        self.name, self.ip = pod["metadata"]["name"], pod["status"]["podIP"]
        host = f"HOSTNAME={self.name}".encode()
        found = pids(lambda comm, e: comm == "flywheel-operat" and host in e)
        if not found:
            raise RuntimeError(f"no process of {self.name} on this machine")
        self.pid = found[0]

    def get(self, path, timeout=10):
        with urllib.request.urlopen(f"http://{self.ip}:{ADMIN_PORT}{path}", timeout=timeout) as answer:
            return answer.read().decode()

    def metrics(self):
        """Values by name and labels."""
        values = {}
        for line in self.get("/metrics").splitlines():
            if line and not line.startswith("#"):
                key, value = line.rsplit(" ", 1)
                name, _, labels = key.partition("{")
                values[(name.removeprefix("flywheel_operator_"), tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels))))] = float(value)
        return values

    def leads(self):
        return self.metrics().get(("leads", ())) == 1

    def counted(self, name, *labels):
        """A counter, summed up by these labels."""
        counts = Counter()
        for (of, at), value in self.metrics().items():
            if of == name:
                counts[tuple(dict(at).get(label, "") for label in labels)] += value
        return counts

    def writes(self):
        return self.counted("api_writes_total", "verb", "kind")


def operators(api):
    pods = [p for p in api.list(OPERATORS) if p["metadata"]["name"].startswith("flywheel-operator") and (p.get("status") or {}).get("podIP")]
    return [p for p in pods if not p["metadata"].get("deletionTimestamp")]


def replicas(api):
    return [Replica(p) for p in operators(api)]


def leader(api):
    return until(lambda: next((r for r in replicas(api) if r.leads()), None), "an operator that leads", 60)


def calm(count, within=300):
    """Waits until what `count` tells stays the same for a while."""
    last, since = count(), time.monotonic()
    deadline = since + within
    while time.monotonic() - since < CALM:
        time.sleep(0.5)
        now = count()
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() > deadline:
            print(f"  not calm after {within} s", file=sys.stderr)
            return


def by_kind(counts):
    return ", ".join(f"{verb} {kind} {n:.0f}" for (verb, kind), n in sorted(counts.items(), key=lambda c: -c[1]) if n)


# --- objects ----------------------------------------------------------------------------------------------------------
def training(name, kind="TrainingJob"):
    spec = {"task": "TextClassification", "model": {"pretrained": {"uri": "s3://b/m"}}, "dataset": {"sources": [{"uri": "s3://b/d.csv"}]},
            "output": {"model": name, "uri": f"s3://b/{name}"}}
    return {"apiVersion": "flywheel.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def service(name, pods):
    return {"apiVersion": "flywheel.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name},
            "spec": {"model": "intent", "modelVersion": VERSION, "replicas": pods, "objectives": {"latencyP99Milliseconds": 200}}}


def version():
    return {"apiVersion": "flywheel.dev/v1alpha1", "kind": "ModelVersion", "metadata": {"name": VERSION},
            "spec": {"model": "intent", "version": 1, "artifact": {"uri": "s3://b/o", "digest": DIGEST}}}


def ended(pod, outcome):
    """The status of a pod whose container ended well and left this."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    message = json.dumps({"schemaVersion": 1, "outcome": outcome})
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": now, "finishedAt": now}}
    return {"status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
                       "containerStatuses": [{"name": pod["spec"]["containers"][0]["name"], "image": "i", "imageID": "", "ready": False,
                                              "restartCount": 0, "state": state}]}}


VERIFIED = {"verified": {"files": 3, "bytes": 1000}}
TRAINED = {"trained": {"artifact": {"uri": "s3://b/o", "digest": DIGEST}, "datasetDigest": "sha256:" + "1" * 64,
                       "metrics": [{"name": "test/accuracy", "value": "0.900000"}], "steps": 100}}
is_running = lambda o: (o.get("status") or {}).get("state") == "Running"


def gone(api, path):
    try:
        api.get(path)
        return False
    except Answer as answer:
        return answer.status == 404


class Bench:
    """What all parts share."""

    def __init__(self, api, nodes, pods, report):
        self.api, self.nodes, self.fakes, self.report = api, nodes, pods, report
        self.population = None

    def namespace(self, name):
        """A new one, once its service account is there. Its name is new as well: in a namespace of a name that was deleted in the last
        half minute the API server asks etcd for the namespace before each write."""
        name = f"{name}-{int(1000 * time.time()):x}"
        self.api.create(NAMESPACES, {"metadata": {"name": name, "labels": {MARK: "true"}}})
        until(lambda: self.api.list(f"{NAMESPACES}/{name}/serviceaccounts"), "a service account", 60)
        return name

    def drop(self, *names):
        """Objects first: a namespace that ends takes the pods of Jobs before the Jobs, which their controller counts as failures."""
        names = [name for name in names if not gone(self.api, f"{NAMESPACES}/{name}")]
        for name in names:
            for collection in (TRAININGS, SERVICES, BARE, JOBS):
                self.api.delete(collection.format(name))
        for name in names:
            until(lambda: not self.api.count(PODS.format(name)), f"no pods in {name}", 1800, 1)
            self.api.delete(f"{NAMESPACES}/{name}")
        for name in names:
            until(lambda: gone(self.api, f"{NAMESPACES}/{name}"), f"the end of namespace {name}", 1800, 1)

    def drop_all(self):
        self.drop(*[n["metadata"]["name"] for n in self.api.list(NAMESPACES, labelSelector=MARK)])
        self.population = None

    def create(self, collection, bodies):
        self.api.all(lambda body: self.api.create(collection, body), bodies)

    def running(self, collection, bodies, is_so, **query):
        """Creates these, and waits until all are as they should be; the seconds that took."""
        seen = set()

        def see(what, o, _):
            if what != "DELETED" and is_so(o):
                seen.add(o["metadata"]["name"])
        path, query = query.pop("watched", collection), query
        with self.api.watch(path, see, **query) as watch:
            begin = time.monotonic()
            self.create(collection, bodies)
            watch.until(lambda: len(seen) >= len(bodies), f"{len(bodies)} objects of {collection} as they should be", WITHIN + EACH * len(bodies))
            return time.monotonic() - begin

    def room(self, a100=0, t4=0, nodes=FAKE_NODES):
        """As many fake nodes as these pods, each with a GPU, find room on. A fifth more, and a few, so that the scheduler need not search."""
        for kind, pods in (("a100", a100), ("t4", t4)):
            count = nodes if pods else 0
            self.nodes.want(kind, count, math.ceil(1.2 * pods / count) + 4 if count else 0)

    def verify(self, namespace):
        """Plays the pods that verify: they need no GPU, so real nodes are closed to new pods while this lasts."""
        return Verifiers(self, namespace)

    def populate(self, objects, pods):
        """Half TrainingJobs, half InferenceServices, with so many pods in all."""
        if self.population == (objects, pods):
            return
        self.drop_all()
        trainings = objects // 2
        services = objects - trainings
        each = (pods - trainings) // services
        self.room(a100=trainings, t4=services * each)
        namespace = self.namespace("scale-population")
        with self.verify(namespace):
            self.running(VERSIONS.format(namespace), [version()], lambda v: any(
                c["type"] == "Verified" and c["status"] == "True" for c in (v.get("status") or {}).get("conditions") or []))
        begin = time.monotonic()
        self.running(TRAININGS.format(namespace), [training(f"job-{n}") for n in range(trainings)], is_running)
        whole = f"{each}/{each}"
        self.running(SERVICES.format(namespace), [service(f"service-{n}", each) for n in range(services)],
                     lambda s: (s.get("status") or {}).get("pods") == whole)
        self.report.row(f"{objects} objects with {trainings + services * each} pods until all run", time.monotonic() - begin, "s")
        self.population = (objects, pods)


class Verifiers:
    def __init__(self, bench, namespace):
        self.bench, self.path = bench, PODS.format(namespace)

    def __enter__(self):
        api, done = self.bench.api, set()
        self.closed = [n["metadata"]["name"] for n in api.list(NODES_PATH, labelSelector="type!=kwok") if not n["spec"].get("unschedulable")]
        for node in self.closed:
            api.patch(f"{NODES_PATH}/{node}", {"spec": {"unschedulable": True}})
        self.bench.nodes.want("plain", 1 + OBJECTS // 100, 0)

        def see(_, pod, __):
            name = pod["metadata"]["name"]
            if (pod.get("status") or {}).get("phase") == "Running" and name not in done:
                done.add(name)
                api.pool.submit(api.patch, f"{self.path}/{name}/status", ended(pod, VERIFIED))
        self.watch = api.watch(self.path, see, labelSelector="app.kubernetes.io/component=verifier")
        self.watch.__enter__()
        return self

    def __exit__(self, *_):
        self.watch.__exit__()
        # Another one's pods, such as the operator's, would only seem to run there.
        self.bench.nodes.want("plain", 0, 0)
        for node in self.closed:
            self.bench.api.patch(f"{NODES_PATH}/{node}", {"spec": {"unschedulable": None}})


# --- parts ------------------------------------------------------------------------------------------------------------
def jobs(bench):
    """Plain Jobs, a bare operator and ours, one after the other and again, with the same pods."""
    api = bench.api
    bench.drop_all()
    bench.room(a100=OBJECTS)
    namespace = bench.namespace("scale-template")
    bench.running(TRAININGS.format(namespace), [training("job-0")], is_running)
    template = api.list(JOBS.format(namespace))[0]["spec"]["template"]
    bench.drop(namespace)
    template["metadata"]["labels"] = {k: v for k, v in template["metadata"]["labels"].items() if not OF_ITS_JOB.search(k)}
    spec = {"backoffLimit": 0, "completionMode": "Indexed", "completions": 1, "parallelism": 1, "podReplacementPolicy": "Failed", "template": template}
    made = {
        "plain Jobs": (JOBS, lambda n: {"metadata": {"name": f"job-{n}"}, "spec": spec}, lambda _: True),
        "a bare operator": (BARE, lambda n: {"apiVersion": "bench.flywheel.dev/v1", "kind": "BareJob", "metadata": {"name": f"job-{n}"}, "spec": {}}, is_running),
        "ours": (TRAININGS, lambda n: training(f"job-{n}"), is_running),
    }
    walls, processors = {who: [] for who in made}, {who: [] for who in made}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, BareOperator(api, file, template) as bare:
        for _ in range(REPEAT):
            for who, (collection, body, is_so) in made.items():
                namespace = bench.namespace("scale-jobs")
                lead = leader(api)
                plane = ControlPlane(operator=lead.pid, **{"bare operator": bare.pid})
                plane.rest()
                # Of plain Jobs the pods are watched; they are what the others' states tell of.
                query = {"watched": PODS.format(namespace), "fieldSelector": "status.phase=Running"} if who == "plain Jobs" else {}
                plane.start()
                walls[who].append(bench.running(collection.format(namespace), [body(n) for n in range(OBJECTS)], is_so, **query))
                processors[who].append(plane.used())
                print(f"  {who}: {walls[who][-1]:.1f} s, {', '.join(f'{p} {s:.1f}' for p, s in processors[who][-1].items())} CPU-s", flush=True)
                bench.drop(namespace)
        bench.report.row(f"{OBJECTS} objects of a bare operator: VmHWM of it", peak(bare.pid), "MiB")
    wall = {who: statistics.median(values) for who, values in walls.items()}
    parts = ("apiserver", "etcd", "controller-manager", "scheduler")
    plane = {who: statistics.median(sum(used[p] for p in parts) for used in runs) for who, runs in processors.items()}
    for who in made:
        bench.report.row(f"{OBJECTS} objects Running, {who}: wall, median", wall[who], "s", n=REPEAT)
        bench.report.row(f"{OBJECTS} objects Running, {who}: CPU of the control plane, median", plane[who], "s", n=REPEAT,
                  note=", ".join(f"{p} {statistics.median(used[p] for used in processors[who]):.1f}" for p in processors[who][0]))
    bench.report.row("wall, ours / a bare operator", wall["ours"] / wall["a bare operator"], "ratio", n=REPEAT, goal=("<= 1.15", lambda v: v <= 1.15))
    bench.report.row("wall, a bare operator / plain Jobs", wall["a bare operator"] / wall["plain Jobs"], "ratio", n=REPEAT)
    bench.report.row("wall, ours / plain Jobs", wall["ours"] / wall["plain Jobs"], "ratio", n=REPEAT)
    bench.report.row("CPU of the control plane, ours / a bare operator", plane["ours"] / plane["a bare operator"], "ratio", n=REPEAT)
    bench.report.row("CPU of the control plane, ours / plain Jobs", plane["ours"] / plane["plain Jobs"], "ratio", n=REPEAT)


class BareOperator:
    """The bare operator and its kind, until it is left."""

    def __init__(self, api, file, template):
        self.api, self.program, self.file = api, environment("BARE_OPERATOR"), file.name
        json.dump(template, file)
        file.flush()

    def __enter__(self):
        crd = json.loads(subprocess.run([self.program, "crd"], check=True, capture_output=True, text=True).stdout)
        self.crd = f"{CRDS}/{crd['metadata']['name']}"
        # One that an interrupted run left may be another.
        self.api.delete(self.crd)
        until(lambda: gone(self.api, self.crd), "the end of the bare operator's old kind", 60)
        self.api.create(CRDS, crd)
        served = lambda: any(c["type"] == "Established" and c["status"] == "True" for c in (self.api.get(self.crd).get("status") or {}).get("conditions") or [])
        until(served, "the bare operator's kind", 60)
        self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", self.program, "run", self.file])
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.api.delete(self.crd)


def writes(bench):
    """What the operator writes in a TrainingJob's life, and in a minute while it runs."""
    api = bench.api
    bench.drop_all()
    bench.room(a100=OBJECTS)
    namespace = bench.namespace("scale-writes")
    lead = leader(api)
    calm(lambda: sum(lead.writes().values()))
    collection, pods = TRAININGS.format(namespace), PODS.format(namespace)
    begin, statuses = lead.writes(), served_writes(api)
    with bench.verify(namespace):
        bench.running(collection, [training(f"job-{n}") for n in range(OBJECTS)], is_running)
        # The first progress is written within a minute, as every later one.
        time.sleep(CALM)
        run = lead.writes()
        time.sleep(STEADY)
        ran = lead.writes()
        complete = set()

        def see(_, job, __):
            if (job.get("status") or {}).get("state") == "Complete":
                complete.add(job["metadata"]["name"])
        trainers = api.list(pods, labelSelector="app.kubernetes.io/component=trainer")
        with api.watch(collection, see) as watch:
            api.all(lambda pod: api.patch(f"{pods}/{pod['metadata']['name']}/status", ended(pod, TRAINED)), trainers)
            watch.until(lambda: len(complete) >= OBJECTS, "all complete", WITHIN + EACH * OBJECTS)
        calm(lambda: sum(lead.writes().values()))
    end = lead.writes()
    life, running = (run - begin) + (end - ran), ran - run
    of_versions = Counter({k: v for k, v in life.items() if k[1] == "ModelVersion"})
    bench.report.row("operator's writes in a TrainingJob's life, its ModelVersion and that one's verification included", sum(life.values()) / OBJECTS, "writes",
              n=OBJECTS, goal=("<= 12", lambda v: v <= 12), note=by_kind(life))
    bench.report.row("of these on the ModelVersion itself", sum(of_versions.values()) / OBJECTS, "writes", n=OBJECTS)
    bench.report.row("operator's writes a minute for a TrainingJob that runs", sum(running.values()) / OBJECTS / (STEADY / 60), "writes", n=OBJECTS,
              goal=("<= 1", lambda v: v <= 1), note=by_kind(running))
    bench.report.row("the API server's count of writes to TrainingJobs' status", (served_writes(api) - statuses) / OBJECTS, "writes", n=OBJECTS,
              note="all, also while they run")
    bench.drop(namespace)


def served_writes(api):
    """Writes so far to the status of TrainingJobs, from the API server's own counters."""
    total = 0
    for line in api.raw("GET", "/metrics").decode().splitlines():
        if line.startswith("apiserver_request_total{") and 'resource="trainingjobs"' in line and 'subresource="status"' in line:
            total += float(line.rsplit(" ", 1)[1]) if re.search(r'verb="(PUT|PATCH|APPLY)"', line) else 0
    return total


def weigh(bench, objects, pods, limit):
    api = bench.api
    bench.populate(objects, pods)
    lead = leader(api)
    calm(lambda: sum(v for (_, kind), v in lead.writes().items() if kind not in OWN))
    serving = pods - objects // 2
    plane = ControlPlane(operator=lead.pid)
    before, wrote = lead.counted("scrapes_total", "kind", "result"), lead.writes()
    plane.start()
    begin, most, files = time.monotonic(), 0, 0
    while time.monotonic() - begin < STEADY:
        time.sleep(1)
        here, open_files = connections(lead.pid)
        most, files = max(most, here), max(files, open_files)
    seconds = time.monotonic() - begin
    read, used = lead.counted("scrapes_total", "kind", "result") - before, plane.used()
    title = f"{objects} objects, {pods} pods"
    peaks = {r.name: peak(r.pid) for r in replicas(api)}
    standby = max((m for name, m in peaks.items() if name != lead.name), default=None)
    bench.report.row(f"{title}, all scraped: VmHWM of the leader", peaks[lead.name], "MiB", goal=(f"<= {limit}", lambda v: v <= limit))
    bench.report.row(f"{title}: VmHWM of the other replica", standby, "MiB")
    # Each is read every two seconds.
    bench.report.row(f"{title}: reads of each serving pod in two seconds", 2 * read[("load", "Ok")] / seconds / serving, "reads", n=serving,
              goal=(">= 0.9", lambda v: v >= 0.9), note=f"failed {sum(v for (_, result), v in read.items() if result != 'Ok'):.0f}")
    bench.report.row(f"{title}: connections to pods at once, most", most, "", note=f"open files {files}")
    bench.report.row(f"{title}: the operator's CPU, all scraped", used["operator"] / seconds, "cores", note=", ".join(f"{p} {s / seconds:.2f}" for p, s in used.items()))
    wrote = lead.writes() - wrote
    bench.report.row(f"{title}: operator's writes a minute and object", sum(wrote.values()) / objects / (seconds / 60), "writes", n=objects, note=by_kind(wrote))


def memory(bench):
    weigh(bench, OBJECTS, 5 * OBJECTS, 96)


def large(bench):
    weigh(bench, LARGE, 2 * LARGE, 256)


def start(bench):
    """The operator's pods are deleted, with all objects there."""
    api = bench.api
    bench.populate(LARGE, 2 * LARGE)
    old = {r.name for r in replicas(api)}
    begin = time.monotonic()
    for name in old:
        api.delete(f"{OPERATORS}/{name}")
    # When a process started, in seconds since the machine's start, and when it said that it is ready.
    ready, new = {}, {}
    uptime = lambda: float(Path("/proc/uptime").read_text().split()[0])

    def look():
        for pod in operators(api):
            if pod["metadata"]["name"] not in old | set(new):
                with contextlib.suppress(RuntimeError):  # its process has not started
                    new[pod["metadata"]["name"]] = Replica(pod)
        for name, replica in new.items():
            if name not in ready:
                with contextlib.suppress(OSError):  # it is not ready
                    replica.get("/readyz", timeout=1)
                    ready[name] = uptime() - int(stat(replica.pid)[19]) / TICK
        return len(ready) >= len(old)
    until(look, "operators that are ready", 300, 0.05)
    lead = until(lambda: next((r for r in new.values() if r.leads()), None), "an operator that leads", 120, 0.1)
    title = f"cold start with {LARGE} objects, {2 * LARGE} pods"
    bench.report.row(f"{title}: process start to /readyz, the new leader", ready[lead.name], "s", goal=("<= 10", lambda v: v <= 10))
    bench.report.row(f"{title}: the same, the slowest replica", max(ready.values()), "s", n=len(ready))
    bench.report.row(f"{title}: pods deleted until one leads", time.monotonic() - begin, "s")
    time.sleep(60)
    wrote = lead.writes()
    children = {k: v for k, v in wrote.items() if k[1] not in OWN}
    bench.report.row(f"{title}: changes to children in the first minute", sum(children.values()), "writes", goal=("0", lambda v: v == 0), note=by_kind(children))
    bench.report.row(f"{title}: other writes in that minute", sum(wrote.values()) - sum(children.values()), "writes", note=by_kind(wrote))
    bench.report.row(f"{title}: VmHWM of the new leader", peak(lead.pid), "MiB")


def loss(bench):
    """A tenth of all nodes is lost at once, then more than the brake lets through."""
    api = bench.api
    bench.drop_all()
    # A GPU more on each than its share, so that there is room for what a third of them held.
    bench.nodes.want("t4", 0, 0)
    bench.nodes.want("a100", LOST_FROM, math.ceil(OBJECTS / LOST_FROM) + 2)
    namespace = bench.namespace("scale-loss")
    pods, lock, where, back = PODS.format(namespace), threading.Lock(), {}, {}

    def see(what, pod, now):
        """Tells the fake pods' server of which attempt each is, and notes where each job's newest pod runs."""
        job, status = pod["metadata"]["labels"].get("flywheel.dev/training-job"), pod.get("status") or {}
        if what == "DELETED" or not job or status.get("phase") != "Running" or pod["metadata"].get("deletionTimestamp"):
            return
        attempt, node = int(pod["metadata"]["labels"]["flywheel.dev/attempt"]), pod["spec"]["nodeName"]
        with lock:
            known = where.get(job)
            if known is None or known[0] < attempt:
                where[job] = (attempt, node)
                back.setdefault((job, attempt), now)
                told[status["podIP"]] = attempt
    told = {}
    server = f"http://{bench.fakes.address}:{INSIDE_PORT}/attempts"

    def tell():
        """From time to time: a request for each pod would be one more load."""
        while not done.wait(0.2):
            with lock:
                news = dict(told)
                told.clear()
            if news:
                request = urllib.request.Request(server, json.dumps(news).encode(), {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=10).close()
    done = threading.Event()
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    lost = []
    with api.watch(pods, see) as watch:
        try:
            bench.running(TRAININGS.format(namespace), [training(f"job-{n}") for n in range(OBJECTS)], is_running)
            lead = leader(api)
            calm(lambda: sum(v for (_, kind), v in lead.writes().items() if kind not in OWN))
            # Past the first minute of the pods, in which they may still be starting.
            time.sleep(30)
            with lock:
                used, first = sorted({node for _, node in where.values()}), dict(where)
            begin = time.monotonic()
            lost = lose(bench, used[: max(1, round(LOST * LOST_FROM))])
            names = {n["metadata"]["name"] for n in lost}
            struck = [job for job, (_, node) in first.items() if node in names]
            moved = lambda: [j for j in struck if where[j][0] > first[j][0] and where[j][1] not in names]
            watch.until(lambda: len(moved()) == len(struck), f"{len(struck)} jobs on other nodes", 900)
            seconds = sorted(back[(j, where[j][0])] - begin for j in struck)
            title = f"{len(lost)} of {LOST_FROM} nodes lost, {OBJECTS} TrainingJobs: replaced"
            for share, name in ((0.5, "p50"), (0.99, "p99"), (1, "last")):
                value = seconds[min(len(seconds) - 1, math.ceil(share * len(seconds)) - 1)]
                bench.report.row(f"{title}, {name}", value, "s", n=len(seconds), goal=("<= 170", lambda v: v <= 170) if share == 1 else None)
            others = [j for j in first if j not in struck and where[j][0] > first[j][0]]
            bench.report.row("TrainingJobs on other nodes that were started again", len(others), "", n=OBJECTS - len(struck), goal=("0", lambda v: v == 0))
            heal(bench, lost)
            lost = []
            calm(lambda: sum(v for (_, kind), v in lead.writes().items() if kind not in OWN))
            before, count = lead.writes(), round(TOO_MANY * LOST_FROM)
            with lock:
                used = sorted({node for _, node in where.values()})
            spare = [n["metadata"]["name"] for n in bench.nodes.list("a100")]
            lost = lose(bench, (used + [n for n in spare if n not in used])[:count])
            time.sleep(HELD)
            wrote = lead.writes() - before
            deleted = Counter({k: v for k, v in wrote.items() if k[0].lower() == "delete"})
            bench.report.row(f"{len(lost)} of {LOST_FROM} nodes lost: the operator's deletions in {HELD} s", sum(deleted.values()), "", goal=("0", lambda v: v == 0),
                      note=f"deleted: {by_kind(deleted) or 'nothing'}; all writes: {by_kind(wrote)}")
        finally:
            done.set()
            teller.join()
            heal(bench, lost)
    bench.drop(namespace)


def lose(bench, names):
    """These nodes are gone from one moment to the next: nothing renews their leases, and their pods' addresses are silent."""
    nodes = [n for n in bench.nodes.list("a100") if n["metadata"]["name"] in set(names)]
    bench.fakes.silence([n["spec"]["podCIDR"] for n in nodes])
    bench.api.all(lambda n: bench.api.patch(f"{NODES_PATH}/{n['metadata']['name']}", {"metadata": {"labels": {"type": None}}}), nodes)
    return nodes


def heal(bench, nodes):
    if not nodes:
        return
    bench.fakes.silence([n["spec"]["podCIDR"] for n in nodes], silent=False)
    bench.api.all(lambda n: bench.api.patch(f"{NODES_PATH}/{n['metadata']['name']}", {"metadata": {"labels": {"type": "kwok"}}}), nodes)
    names = {n["metadata"]["name"] for n in nodes}
    ready = lambda: sum(any(c["type"] == "Ready" and c["status"] == "True" for c in n["status"]["conditions"])
                        for n in bench.nodes.list("a100") if n["metadata"]["name"] in names) == len(names)
    until(ready, "nodes that are back", 300, 1)


def fair(bench):
    """Jobs of one namespace, one after the other, alone and beside another namespace that is edited all the time."""
    api = bench.api
    bench.drop_all()
    bench.room(a100=OBJECTS + TRIALS)
    noisy, quiet = bench.namespace("scale-noisy"), bench.namespace("scale-quiet")
    bench.running(TRAININGS.format(noisy), [training(f"job-{n}") for n in range(OBJECTS)], is_running)
    bench.create(MAPS.format(noisy), [{"metadata": {"name": f"job-{n}"}, "data": {"edit": "0"}} for n in range(OBJECTS)])
    lead = leader(api)
    # What an edit changes: the operator must look at it and tell that it has seen it, and nothing else follows.
    edits = {"alone": None, "beside edits of ConfigMaps": (MAPS, lambda n: {"data": {"edit": str(n)}}),
             "beside edits of TrainingJobs": (TRAININGS, lambda n: {"spec": {"recovery": {"deadlineSeconds": 300 + n % 100}}})}
    times = {}
    for how, edit in edits.items():
        calm(lambda: sum(v for (_, kind), v in lead.writes().items() if kind not in OWN))
        noise = Noise(api, noisy, *edit) if edit else None
        if noise:
            noise.start()
            time.sleep(CALM)
        times[how] = [bench.running(TRAININGS.format(quiet), [training(f"{how.rsplit(' ', 1)[-1].lower()}-{n}")], is_running) for n in range(TRIALS)]
        if noise:
            noise.end()
            bench.report.row(f"edits a minute, {how}", noise.rate(), "edits", n=noise.done, goal=(f">= {EDITS * 0.95:.0f}", lambda v: v >= EDITS * 0.95))
        bench.report.row(f"TrainingJob applied to Running, {how}: median", statistics.median(times[how]), "s", n=TRIALS,
                  note=f"longest {max(times[how]):.2f} s")
    alone, maps, trainings = (statistics.median(t) for t in times.values())
    bench.report.row(f"slower beside {EDITS} edits a minute of another namespace's TrainingJobs", 100 * (trainings / alone - 1), "%", n=TRIALS,
              goal=("<= 20", lambda v: v <= 20))
    bench.report.row("slower beside as many of ConfigMaps, which the operator does not watch", 100 * (maps / alone - 1), "%", n=TRIALS)
    bench.drop(noisy, quiet)


class Noise(threading.Thread):
    """Edits the objects of a namespace in turn, at a steady rate."""

    def __init__(self, api, namespace, collection, edit):
        super().__init__(daemon=True)
        self.api, self.path, self.edit = api, collection.format(namespace), edit
        self.stop, self.done = threading.Event(), 0

    def run(self):
        self.begin, pending = time.monotonic(), []
        # Threads of its own: what is measured beside it must not wait for one of them.
        with ThreadPoolExecutor(TOGETHER) as pool:
            while not self.stop.wait(max(0.0, self.begin + self.done * 60 / EDITS - time.monotonic())):
                pending = [p for p in pending if not p.done()]
                # What is late is made up for.
                if len(pending) >= TOGETHER:
                    pending[0].result()
                    continue
                n = self.done
                pending.append(pool.submit(self.api.patch, f"{self.path}/job-{n % OBJECTS}", self.edit(n // OBJECTS + 1)))
                self.done += 1
        for p in pending:
            p.result()
        self.seconds = time.monotonic() - self.begin

    def end(self):
        self.stop.set()
        self.join()

    def rate(self):
        return 60 * self.done / self.seconds


PARTS = {"jobs": jobs, "writes": writes, "memory": memory, "large": large, "start": start, "loss": loss, "fair": fair}


def main():
    only = (os.environ.get("ONLY") or ",".join(PARTS)).split(",")
    if unknown := set(only) - set(PARTS):
        sys.exit(f"ONLY: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    # An end by SIGTERM is one by an exception as well: what was changed on the machine and in the cluster is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    report, api = Report("scale"), Api()
    print(f"bench-scale on {cpu()}; simulated: nodes and their pods are KWOK's")
    with FakePods(api, VERSION, DIGEST) as pods, FakeNodes(api) as nodes:
        bench = Bench(api, nodes, pods, report)
        try:
            for name, part in PARTS.items():
                if name in only:
                    print(f"{name}:", flush=True)
                    try:
                        part(bench)
                    finally:
                        report.write()
        finally:
            bench.drop_all()


if __name__ == "__main__":
    main()
