#!/usr/bin/env python3
"""Clients of a service that say what would have been right: feedback.py URL DATA KNOWN [--rate 40]

DATA and KNOWN are CSV files with the columns text and label. The clients ask texts of the intents in KNOWN, twenty at a time. On
stdin they are told a word a line: `new`, three texts of ten are of intents that KNOWN lacks; `judge`, they say of each answer what
would have been right; `stop`. A line for each ten seconds says how many answers were right, and of which version they were.
"""
import argparse
import collections
import csv
import itertools
import json
import random
import sys
import threading
import time

import predict

BATCH = 20
NEW_OF_TEN = 3


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("data")
    parser.add_argument("known")
    parser.add_argument("--rate", type=float, default=40.0, help="texts a second")
    args = parser.parse_args()
    labels = {label for _, label in rows(args.known)}
    data = rows(args.data)
    random.Random(1).shuffle(data)
    known = itertools.cycle([row for row in data if row[1] in labels])
    new = itertools.cycle([row for row in data if row[1] not in labels])

    told = set()
    threading.Thread(target=lambda: told.update(iter(sys.stdin.readline, "")) or told.add("stop\n"), daemon=True).start()
    seen, since = collections.Counter(), time.monotonic()
    while "stop\n" not in told:
        begun = time.monotonic()
        batch = [next(new if "new\n" in told and n % 10 < NEW_OF_TEN else known) for n in range(BATCH)]
        predictions = predict.predict(args.url, [text for text, _ in batch], seconds=5.0)
        for prediction, (_, label) in zip(predictions, batch):
            seen["texts"] += 1
            seen["right"] += prediction["label"] == label
            seen[prediction["model_version"]] += 1
        if "judge\n" in told:
            predict.post(f"{args.url}/feedback", {"feedback": [
                {"request_id": prediction["request_id"], "label": label} for prediction, (_, label) in zip(predictions, batch)]})
        if time.monotonic() - since >= 10:
            texts, right = seen.pop("texts"), seen.pop("right")
            print(f"{100 * right / texts:.1f} % of {texts} texts right; answered by " +
                  ", ".join(f"{version} {100 * count / texts:.0f} %" for version, count in sorted(seen.items())), flush=True)
            seen.clear()
            since = time.monotonic()
        time.sleep(max(0.0, BATCH / args.rate - (time.monotonic() - begun)))


if __name__ == "__main__":
    main()
