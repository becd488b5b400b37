#!/usr/bin/env python3
"""Puts inputs that must be refused into the bucket `bad-inputs`, made from the example's data and encoder (see end_to_end.rs)."""
import csv
import io
import json
import os
import struct
import sys
from pathlib import Path

import boto3
from botocore.config import Config

example = Path(sys.argv[1])
client = boto3.client("s3", endpoint_url=os.environ["FLYWHEEL_S3_ENDPOINT"], region_name="us-east-1",
                      config=Config(connect_timeout=5, retries={"max_attempts": 3}, s3={"addressing_style": "path"}))
BUCKET = "bad-inputs"
if BUCKET not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
    client.create_bucket(Bucket=BUCKET)


def put(key, body):
    client.put_object(Bucket=BUCKET, Key=key, Body=body)


def table(rows, header=("text", "label")):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


two = [(f"{verb} the lamp {n}", label) for n in range(20) for verb, label in (("switch on", "on"), ("switch off", "off"))]
put("good.csv", table(two))
put("empty.csv", b"")
put("no-rows.csv", table([]))
put("wrong-column.csv", table(two, ("utterance", "intent")))
put("one-class.csv", table([(t, "on") for t, _ in two]))
put("other-label.csv", table([("what is the weather", "weather"), ("switch on the fan", "on")]))
put("broken-utf8.csv", b"text,label\nswitch on \xff\xfe,on\nswitch off,off\n")

config, weights = (example / "minilm-l6/config.json").read_bytes(), (example / "minilm-l6/model.safetensors").read_bytes()
tokenizer = (example / "minilm-l6/tokenizer.json").read_bytes()
for folder, files in {
    "no-tokenizer": {"config.json": config, "model.safetensors": weights[:4096]},
    "truncated": {"config.json": config, "tokenizer.json": tokenizer, "model.safetensors": weights[: len(weights) // 2]},
    "lying": {"config.json": config, "tokenizer.json": tokenizer},
}.items():
    for name, body in files.items():
        put(f"{folder}/{name}", body)
# A header that claims bytes which are not there.
header = json.dumps({"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [30522, 384], "data_offsets": [0, 46881792]}}).encode()
put("lying/model.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 1024)
