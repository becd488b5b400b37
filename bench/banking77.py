"""banking77 for both sides of a benchmark: the same rows, our trainer and Hugging Face's, each with its accuracy, time and memory."""
import csv
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from report import ROOT

HYPERPARAMETERS = {"epochs": 4, "batchSize": 16, "learningRate": "1e-4", "weightDecay": "0.01", "warmupRatio": "0.1", "maxLength": 128}


# MiniLM-L6.
HIDDEN, INNER, LAYERS = 384, 1536, 6


def encoder_flops(tokens):
    """FLOPs of the matrix products of one row, forward: linear maps and attention, in the last layer of the first token only."""
    full = tokens * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + 2 * tokens * tokens * HIDDEN
    last = tokens * 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER + 2 * tokens * HIDDEN
    return 2 * ((LAYERS - 1) * full + last)


def on_gpu():
    """Whether DEVICE=cuda asks for a GPU of this machine, with the CUDA build of our libtorch in LD_LIBRARY_PATH."""
    return os.environ.get("DEVICE") == "cuda"


def environment(name):
    value = os.environ.get(name)
    if not value:
        sys.exit(f"{name} is not set; run it through `make bench-…`")
    return value


def without_our_libtorch():
    """The environment for a Python that has a torch of its own."""
    return {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}


def data():
    """The folder that DATA names; None, after a word on what to fetch, where it holds no banking77."""
    folder = Path(os.environ.get("DATA") or "-")
    if (folder / "train.csv").is_file() and (folder / "test.csv").is_file():
        return folder
    print("DATA names no folder with banking77's train.csv and test.csv (columns text,category): fetch `banking_data/` of "
          "PolyAI-LDN/task-specific-datasets (CC BY 4.0) and give DATA=<folder>", file=sys.stderr)
    return None


def write_sets(source, folder, seed):
    """Its own test set, a tenth of train for validation: train.csv, validation.csv and test.csv with text,label."""
    rows = lambda name: [(r["text"], r["category"]) for r in csv.DictReader(open(source / name, newline="", encoding="utf-8"))]
    train = rows("train.csv")
    random.Random(seed).shuffle(train)
    cut = len(train) // 10
    folder.mkdir()
    for name, part in (("validation", train[:cut]), ("train", train[cut:]), ("test", rows("test.csv"))):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *part])


def processor_seconds(pid):
    fields = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(process):
    """Waits; peak of the resident memory in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024


def pinned(threads):
    """For a child: as many cores as it has threads."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return lambda: os.sched_setaffinity(0, cores)


class GpuMemory:
    """The most memory, in MiB, that was taken on the GPU while it was watched, beyond what was before."""

    def __enter__(self):
        self.before, self.peak, self.over = self.used(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def used(self):
        run = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True)
        return int(run.stdout.split()[0])

    def watch(self):
        while not self.over.wait(0.2):
            self.peak = max(self.peak, self.used() - self.before)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def watched(run):
    """What a run gives, with the peak of the GPU's memory where there is one."""
    if not on_gpu():
        return run()
    with GpuMemory() as memory:
        result = run()
    return {**result, "gpuMebibytes": memory.peak}


def flywheel(folder, hyperparameters, threads):
    """One training. Its time is that of the phase Training: all steps, and the validation after each epoch."""
    uri = lambda name: {"uri": f"file://{folder}/{name}.csv"}
    out = folder / f"out-{time.monotonic_ns()}"
    job = {"apiVersion": "flywheel.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "banking77", "namespace": "bench"},
           "spec": {"task": "TextClassification", "model": {"pretrained": {"uri": f"file://{environment('ENCODER')}"}},
                    "dataset": {"sources": [uri("train")], "validation": [uri("validation")], "test": [uri("test")], "deduplicate": False},
                    "checkpoint": {"intervalSeconds": 3600}, "hyperparameters": hyperparameters,
                    "output": {"model": "banking77", "uri": f"file://{out}"}}}
    out.mkdir()
    (out / "job.yaml").write_text(json.dumps(job))
    process = subprocess.Popen([environment("TRAINER"), "run", "-f", out / "job.yaml", "--device", "cuda" if on_gpu() else "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, preexec_fn=pinned(threads))
    marks, log, precision = {}, [], None
    for line in process.stderr:
        log.append(line)
        try:
            event = json.loads(line)
        except ValueError:
            continue
        precision = event.get("precision", precision)
        if event.get("message") == "phase":
            marks[event["phase"]] = processor_seconds(process.pid)
    peak = finished(process)
    if process.returncode:
        raise RuntimeError(f"flywheel-trainer: {''.join(log)[-2000:]}")
    result = json.loads(next(out.rglob("attempt-*.result.json")).read_text())
    metric = {m["name"]: float(m["value"]) for m in result["metrics"]}
    return {"accuracy": metric["test/accuracy"], "seconds": result["trainSeconds"], "cpuSeconds": marks["Evaluating"] - marks["Training"],
            "peakMebibytes": peak, "precision": precision, "loss": result["epochs"][-1]["trainLoss"]}


def transformers(folder, hyperparameters, threads, *options):
    """The same with bench/peers/huggingface_train.py."""
    h = hyperparameters
    process = subprocess.Popen(
        [environment("FLYWHEEL_PYTHON"), ROOT / "bench/peers/huggingface_train.py", "--train", folder / "train.csv", "--validation",
         folder / "validation.csv", "--test", folder / "test.csv", "--model", environment("ENCODER"), "--out", folder / "hf", "--epochs",
         str(h["epochs"]), "--batch-size", str(h["batchSize"]), "--learning-rate", h["learningRate"], "--weight-decay", h["weightDecay"],
         "--warmup-ratio", h["warmupRatio"], "--max-length", str(h["maxLength"]), "--seed", str(h["seed"]), "--threads", str(threads),
         *(["--device", "cuda"] if on_gpu() else []), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=pinned(threads),
        env=without_our_libtorch())
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    said = process.stdout.read()
    peak = finished(process)
    reader.join()
    if process.returncode:
        raise RuntimeError(f"transformers: {errors[0][-2000:]}")
    return {**json.loads(said.strip().splitlines()[-1]), "peakMebibytes": peak}
