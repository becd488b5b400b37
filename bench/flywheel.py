#!/usr/bin/env python3
"""`make bench-flywheel`: what the drift verdict is worth on real text, banking77 with MiniLM-L6.

A version is trained without some intents (or ARTIFACT=<folder> gives one that is). Its pods' counts of windows are drawn from the test
texts that it was made for, with replacement, and judged by the operator's own policy with hourly windows and default limits:
false alarms in a week of windows, and how often a shift is declared within two windows: new intents, intents that are gone, another
source mixed in, typing errors, longer texts, each from windows of 500 texts on until it is declared in 180 of 200 seeds.
Nothing is asserted: a missed goal is printed and written as missed.
"""
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import banking77
from banking77 import environment
from report import ROOT, Report, cpu

SEEDS = 200
SIZES = (500, 1000, 2000, 4000, 8000)
# Intents that the version does not know: every eleventh.
NEW_OF = 11
DRIFT = {"windowSeconds": 3600}


def typed(text, rng):
    """The text with an error in every third word: letters exchanged, left out or doubled."""
    words = text.split(" ")
    for at, word in enumerate(words):
        if len(word) > 3 and rng.random() < 1 / 3:
            i = rng.randrange(len(word) - 1)
            words[at] = rng.choice([word[:i] + word[i + 1] + word[i] + word[i + 2:], word[:i] + word[i + 1:], word[:i] + word[i] + word[i:]])
    return " ".join(words)


def rows(path):
    return [(r["text"], r.get("category") or r["label"]) for r in csv.DictReader(open(path, newline="", encoding="utf-8"))]


def pools(data, new):
    """Texts by what they are."""
    rng = random.Random(1)
    test = rows(data / "test.csv")
    usual = [text for text, label in test if label not in new]
    labels = sorted({label for _, label in test if label not in new})
    gone = set(labels[::4])
    other = [text for text, _ in rows(Path(environment("EXAMPLE")) / "data/test.csv")]
    return {
        "usual": usual,
        "new": [text for text, label in test if label in new],
        "without a quarter of the intents": [text for text, label in test if label not in new | gone],
        "another source": other,
        "typed badly": [typed(text, rng) for text in usual],
        "longer": [f"{text} {rng.choice(usual)}" for text in usual],
    }


def train(data, new, folder):
    """An epoch without the new intents."""
    banking77.write_sets(data, folder / "sets", 1)
    for path in (folder / "sets").glob("*.csv"):
        kept = [row for row in rows(path) if row[1] not in new]
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *kept])
    banking77.flywheel(folder / "sets", {**banking77.HYPERPARAMETERS, "epochs": 1, "seed": 1}, os.cpu_count())
    return next((folder / "sets").rglob("manifest.json")).parent


def main():
    data = banking77.data()
    if not data:
        return
    print(f"bench-flywheel on {cpu()}", file=sys.stderr)
    labels = sorted({label for _, label in rows(data / "test.csv")})
    new = set(labels[::NEW_OF])
    report = Report("flywheel")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        artifact = os.environ.get("ARTIFACT")
        if not artifact:
            print("  training one epoch", file=sys.stderr)
            artifact = train(data, new, folder)
        files = {}
        for name, texts in pools(data, new).items():
            (folder / "texts.json").write_text(json.dumps(texts))
            files[name] = str(folder / f"{name}.jsonl")
            with open(files[name], "w") as out:
                subprocess.run([environment("PROFILE_TEXTS"), artifact, folder / "texts.json"], stdout=out, check=True)

        def declared(runs):
            plan = {"bins": json.loads((Path(artifact) / "data_profile.json").read_text()), "drift": DRIFT, "seeds": SEEDS, "runs": runs}
            (folder / "plan.json").write_text(json.dumps(plan))
            told = subprocess.run([environment("DRIFT_WINDOWS"), folder / "plan.json"], stdout=subprocess.PIPE, text=True, check=True)
            return [json.loads(line) for line in told.stdout.splitlines()]

        usual = files["usual"]
        for texts in (500, 2000):
            week = declared([{"name": "week", "texts": texts, "windows": 168, "mix": [(usual, 1)]}])[0]
            report.row(f"drift: weeks with a false alarm, hourly windows of {texts} texts", 100 * week["declared"] / SEEDS, "%", SEEDS,
                       ("<= 1", lambda v: v <= 1), f"{week['drifted']} of {SEEDS * 168} windows had drifted by themselves")
        # So few new intents stay below the limits, with however many texts: the row shows where they are.
        few = "10 % new intents"
        shifts = [("30 % new intents", [(usual, 0.7), (files["new"], 0.3)]), (few, [(usual, 0.9), (files["new"], 0.1)]),
                  ("a quarter of the intents gone", [(files["without a quarter of the intents"], 1)]),
                  ("20 % of another source", [(usual, 0.8), (files["another source"], 0.2)]),
                  ("typing errors in every third word", [(files["typed badly"], 1)]), ("two questions in one text", [(files["longer"], 1)])]
        for name, mix in shifts:
            # The reference is drawn from the first file of the first run.
            runs = [{"name": "usual", "texts": 500, "windows": 0, "mix": [(usual, 1)]}]
            runs += [{"name": name, "texts": texts, "windows": 2, "mix": mix} for texts in SIZES]
            told = {run["texts"]: run["declared"] / SEEDS for run in declared(runs)[1:]}
            enough = next((texts for texts in SIZES if told[texts] >= 0.9), None)
            shown = ", ".join(f"{texts}: {share:.2f}" for texts, share in told.items())
            report.row(f"drift: declared within two windows, {name}", told[enough or SIZES[-1]], "share", SEEDS, None if name == few else (">= 0.9", lambda v: v >= 0.9),
                       f"windows of {enough or SIZES[-1]} texts; by texts {shown}")
    report.write()


if __name__ == "__main__":
    main()
