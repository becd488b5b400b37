#!/usr/bin/env python3
"""`make bench-train`: one whole epoch of banking77 in each cell, ours beside Hugging Face's Trainer as its documentation sets it up and
as people tune it, on THREADS=1 cores. Rates are examples per CPU-second, steps and the validation after them together.

With DEVICE=cuda on a GPU of this machine, with examples per second of the clock.
DATA=<folder with banking77's train.csv and test.csv>; ONLY= and SKIP=<regular expression> choose cells by their names; the
others keep the figures of an earlier run. Nothing is asserted: a missed goal is printed and written as missed.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import banking77
from banking77 import HIDDEN, encoder_flops, environment, without_our_libtorch
from report import Report, cpu

GROUPED = ("--sampling", "group_by_length")
DOCUMENTED = "transformers as documented, Float32"
# How people tune it by hand; the best of each precision is what we compare with.
TUNED = {
    "Float32": {"length groups": GROUPED, "length groups, torch.compile": (*GROUPED, "--compile"),
                "length groups, matmul precision medium": (*GROUPED, "--matmul-precision", "medium")},
    "BFloat16": {"bf16, length groups": (*GROUPED, "--bf16"), "bf16, length groups, torch.compile": (*GROUPED, "--bf16", "--compile")},
}
TUNED_ON_GPU = {
    "Float32": {"length groups": GROUPED},
    "Float16": {"fp16, length groups": (*GROUPED, "--fp16")},
    "BFloat16": {"bf16, length groups": (*GROUPED, "--bf16")},
}
# Largest matrix products of one step with some 300 tokens: the limit that the processor itself sets.
GEMM = """
import json, sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
out = {}
for kind in (torch.float32, torch.bfloat16):
    a, b = torch.randn(320, 384, dtype=kind), torch.randn(384, 1536, dtype=kind)
    for _ in range(20): a @ b
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for _ in range(50): a @ b
        best = max(best, 50 * 2 * 320 * 384 * 1536 / (time.process_time() - start) / 1e9)
    out[str(kind)] = best
print(json.dumps(out))
"""


def work(folder, tokenizer):
    """FLOPs of the matrix products of one epoch's steps, forward and backward (three times forward), from the rows' tokens: MiniLM-L6
    with the last layer's first token only."""
    script = ("import csv, json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
              "print(json.dumps([len(i) for i in t([r['text'] for r in csv.DictReader(open(sys.argv[2]))], truncation=True, max_length=128)['input_ids']]))")
    run = subprocess.run([environment("FLYWHEEL_PYTHON"), "-c", script, tokenizer, folder / "train.csv"], capture_output=True, text=True,
                         check=True, env=without_our_libtorch())
    head = 2 * (HIDDEN * HIDDEN + 77 * HIDDEN)
    return sum(3 * (encoder_flops(tokens) + head) for tokens in json.loads(run.stdout.strip().splitlines()[-1]))


def main():
    data = banking77.data()
    if not data:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sets"
        banking77.write_sets(data, folder, 1)
        report = Report("train-cuda" if banking77.on_gpu() else "train")
        (gpu if banking77.on_gpu() else processor)(report, folder)
    report.write()


def run_cells(report, folder, precisions, tuned, clock, unit):
    """Runs the cells that ONLY names; the results of those that went well."""
    threads, only, skipped = int(os.environ.get("THREADS") or 1), os.environ.get("ONLY") or "", os.environ.get("SKIP")
    rows = sum(1 for _ in open(folder / "train.csv")) - 1
    base = {**banking77.HYPERPARAMETERS, "epochs": 1, "seed": 1}
    cells = {f"flywheel {p}": lambda p=p: banking77.flywheel(folder, {**base, "precision": p}, threads) for p in precisions}
    cells[DOCUMENTED] = lambda: banking77.transformers(folder, base, threads)
    for options in tuned.values():
        cells |= {f"transformers, {name}": lambda o=o: banking77.transformers(folder, base, threads, *o) for name, o in options.items()}
    seen = {}
    for name, run in cells.items():
        if not re.search(only, name) or skipped and re.search(skipped, name):
            continue
        try:
            seen[name] = banking77.watched(run)
        except RuntimeError as error:
            report.row(f"{name}: {unit}", None, "1/s", note=str(error).strip().splitlines()[-1][:200])
            continue
        seen[name]["rate"] = rows / seen[name][clock]
        report.row(f"{name}: {unit}", seen[name]["rate"], "1/s")
        report.row(f"{name}: peak RSS", seen[name]["peakMebibytes"], "MiB")
        if "gpuMebibytes" in seen[name]:
            report.row(f"{name}: peak memory on the GPU", seen[name]["gpuMebibytes"], "MiB")
        report.row(f"{name}: test accuracy after the epoch", seen[name]["accuracy"], "")
    for precision in precisions:
        ours = f"flywheel {precision}"
        peers = [f"transformers, {name}" for name in tuned.get(precision, {}) if f"transformers, {name}" in seen]
        if ours in seen and peers:
            best = max(peers, key=lambda name: seen[name]["rate"])
            report.row(f"{ours} / best tuned transformers at equal precision", seen[ours]["rate"] / seen[best]["rate"], "ratio", 1,
                       (">= 1.2", lambda v: v >= 1.2), best)
            report.row(f"{ours}: peak RSS / that of the best tuned", seen[ours]["peakMebibytes"] / seen[best]["peakMebibytes"], "ratio", 1,
                       ("<= 0.7", lambda v: v <= 0.7))
        if ours in seen and DOCUMENTED in seen:
            report.row(f"{ours} / documented transformers", seen[ours]["rate"] / seen[DOCUMENTED]["rate"], "ratio", 1,
                       (">= 1", lambda v: v >= 1))
    return seen


def processor(report, folder):
    print(f"bench-train on {cpu()}, {os.environ.get('THREADS') or 1} thread(s)")
    seen = run_cells(report, folder, ("Float32", "BFloat16"), TUNED, "cpuSeconds", "examples per CPU-second")
    run = subprocess.run([environment("FLYWHEEL_PYTHON"), "-c", GEMM, os.environ.get("THREADS") or "1"], capture_output=True, text=True,
                         check=True, env=without_our_libtorch())
    limits = json.loads(run.stdout.strip().splitlines()[-1])
    flops = work(folder, environment("ENCODER"))
    for precision, kind in (("Float32", "torch.float32"), ("BFloat16", "torch.bfloat16")):
        report.row(f"GEMM limit of this processor, {precision}", limits[kind], "GFLOP/s")
        if f"flywheel {precision}" in seen:
            share = flops / seen[f"flywheel {precision}"]["cpuSeconds"] / 1e9 / limits[kind]
            report.row(f"flywheel {precision}: share of that limit", 100 * share, "%",
                       note="validation, softmax, norms and AdamW count against it")


def gpu(report, folder):
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"bench-train on {name}, {cpu()}")
    run_cells(report, folder, ("Float32", "BFloat16", "Float16"), TUNED_ON_GPU, "seconds", f"examples per second on {name}")


if __name__ == "__main__":
    main()
