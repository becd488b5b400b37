"""What every benchmark prints and writes: a table, and bench/results/<name>.json."""
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cpu():
    """Name of the processor and the number of cores seen."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", text)
    fields = {k: re.search(rf"{k}\s*:\s*(\d+)", text) for k in ("cpu family", "model")}
    numbers = " ".join(f"{k} {m.group(1)}" for k, m in fields.items() if m)
    return f"{name.group(1) if name else 'unknown'} ({numbers}), {os.cpu_count()} cores"


class Report:
    """Rows of {name, value, unit, n, goal, met}; a goal is (text, function of the value) or None."""

    def __init__(self, name, command=None):
        self.name, self.rows, self.command = name, [], command or f"bench-{name}"

    def row(self, name, value, unit, n=1, goal=None, note=None):
        met = None if goal is None or value is None else bool(goal[1](value))
        self.rows.append({"name": name, "value": value, "unit": unit, "n": n, "goal": goal[0] if goal else None, "met": met,
                          **({"note": note} if note else {})})
        shown = "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else value
        print(f"  {name:<58} {shown:>12} {unit:<10} n={n:<3} {('goal ' + goal[0]) if goal else '':<14} "
              f"{'' if met is None else 'met' if met else 'MISSED'} {note or ''}", flush=True)

    def write(self):
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        path = ROOT / "bench" / "results" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {"command": " ".join(["make", self.command, *[f"{k}={os.environ[k]}" for k in ("DEVICE", "ONLY", "SKIP", "SEEDS", "THREADS", "MINUTES", "TRIALS", "OBJECTS", "LARGE", "REPEAT", "NODES", "LOSS_NODES") if os.environ.get(k)]]),
                "commit": commit, "cpu": cpu(), "date": datetime.date.today().isoformat(), "rows": self.rows}
        old = json.loads(path.read_text()) if path.exists() else {"rows": []}
        # A run of some parts keeps the other parts' rows, marked with the run that they come from.
        fresh = {r["name"] for r in self.rows}
        kept = [{**{k: old[k] for k in ("commit", "cpu", "date") if k in old}, **r} for r in old["rows"] if r["name"] not in fresh]
        body["rows"] = self.rows + kept
        path.write_text(json.dumps(body, indent=1) + "\n")
        print(f"written: {path.relative_to(ROOT)}  (commit {commit}, {body['cpu']})", file=sys.stderr)
