#!/usr/bin/env python3
"""The bucket of a test with real pods, `BUCKET` or `bad-inputs`: inputs that must be refused, and what else tests put there and look at.

make EXAMPLE         empties it and puts all inputs there; the example's folder gives the tokenizer
put KEY...           something foreign at each key
leave-out DATA KEY LABEL...   the example's sets below the key, without rows of these labels
relabel DATA KEY FROM TO      the example's sets below the key, with the label TO in place of FROM in all rows of each but a dozen
scramble DATA KEY             the example's sets below the key, every other row with the label of the one before
copy FROM TO         all objects under a prefix to another one
remove PREFIX        removes all objects under a prefix
flip KEY             changes one byte in the middle
teach EXAMPLE KEY LABEL...    below the key an encoder that learns within seconds, and texts, each with the one of these words that it has
vary FROM TO CHANGE...        the artifact below a prefix changed and with a right manifest, below another one; prints its digest.
                     swap=A,B: the names of two labels; overflow=WORD: texts with this word come to no numbers, though all weights
                     are; layers=N: so many, of which those that are added change next to nothing
digests PREFIX       prints {key: sha256} of all objects under a prefix
"""
import array
import csv
import hashlib
import io
import json
import os
import random
import struct
import sys
from pathlib import Path

import boto3
from botocore.config import Config

BUCKET = os.environ.get("BUCKET", "bad-inputs")
client = boto3.client("s3", endpoint_url=os.environ["FLYWHEEL_S3_ENDPOINT"], region_name="us-east-1",
                      config=Config(connect_timeout=5, retries={"max_attempts": 3}, s3={"addressing_style": "path"}))


def put(key, body):
    client.put_object(Bucket=BUCKET, Key=key, Body=body)


def get(key):
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def keys(prefix):
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def table(rows, header=("text", "label")):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def safetensors(shapes):
    """Random weights of these shapes, and layer norms as they begin."""
    rng, header, body = random.Random(7), {}, bytearray()
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        values = array.array("f", (1.0 if name.endswith("LayerNorm.weight") else rng.uniform(-0.1, 0.1) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + 4 * count]}
        body += values.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def tiny(tokenizer):
    """A BERT of one layer, so that what happens around a training is what takes the time."""
    hidden, inner, tokens, positions = 16, 32, len(json.loads(tokenizer)["model"]["vocab"]), 64
    shapes = {"embeddings.word_embeddings.weight": [tokens, hidden], "embeddings.position_embeddings.weight": [positions, hidden],
              "embeddings.token_type_embeddings.weight": [2, hidden]}
    layer = "encoder.layer.0."
    for name, (to, of) in {"attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden),
                           "attention.self.value": (hidden, hidden), "attention.output.dense": (hidden, hidden),
                           "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}.items():
        shapes |= {f"{layer}{name}.weight": [to, of], f"{layer}{name}.bias": [to]}
    for name in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        shapes |= {f"{name}.weight": [hidden], f"{name}.bias": [hidden]}
    config = {"model_type": "bert", "vocab_size": tokens, "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": inner, "max_position_embeddings": positions, "type_vocab_size": 2, "hidden_act": "gelu"}
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": tokenizer, "model.safetensors": safetensors(shapes)}


def make(example):
    if BUCKET not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    # What an earlier run has left would be foreign data in places where none is expected.
    left = keys("")
    for at in range(0, len(left), 1000):
        client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in left[at:at + 1000]]})
    two = [(f"{verb} the lamp {n}", label) for n in range(20) for verb, label in (("switch on", "on"), ("switch off", "off"))]
    put("good.csv", table(two))
    put("no-rows.csv", table([]))
    put("wrong-column.csv", table(two, ("utterance", "intent")))
    put("one-class.csv", table([(t, "on") for t, _ in two]))
    put("other-label.csv", table([("what is the weather", "weather"), ("switch on the fan", "on")]))
    put("broken-utf8.csv", b"text,label\nswitch on \xff\xfe,on\nswitch off,off\n")

    files = tiny((example / "minilm-l6/tokenizer.json").read_bytes())
    config, tokenizer, weights = files.values()
    # A header that claims bytes which are not there.
    header = json.dumps({"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [30522, 16], "data_offsets": [0, 1953408]}}).encode()
    for folder, files in {
        "tiny": files,
        "no-tokenizer": {"config.json": config, "model.safetensors": weights},
        "truncated": {"config.json": config, "tokenizer.json": tokenizer, "model.safetensors": weights[: len(weights) // 2]},
        "lying": {"config.json": config, "tokenizer.json": tokenizer,
                  "model.safetensors": struct.pack("<Q", len(header)) + header + b"\0" * 1024},
    }.items():
        for name, body in files.items():
            put(f"{folder}/{name}", body)
    # Last: the connection that sent an empty body with `Expect: 100-continue` answers nothing more for half a minute.
    put("empty.csv", b"")


def change(data, key, rows_of):
    """The example's sets below the key, with other rows."""
    for path in sorted(Path(data).glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            put(f"{key}/{path.name}", table(rows_of(list(csv.reader(file))[1:])))


def teach(example, key, labels):
    for name, body in tiny((example / "minilm-l6/tokenizer.json").read_bytes()).items():
        put(f"{key}/tiny/{name}", body)
    rng, openings = random.Random(7), ["start", "stop", "open", "close", "show", "find", "change", "check"]
    rows = {(f"{one} the {label} {two} {n}", label) for label in labels for one in openings for two in openings for n in rng.sample(range(90), 2)}
    put(f"{key}/words.csv", table(sorted(rows)))


def vary(source, target, changes):
    files = {key[len(source):]: get(key) for key in keys(source)}
    manifest, config, weights = json.loads(files["manifest.json"]), json.loads(files["config.json"]), files["model.safetensors"]
    length, = struct.unpack("<Q", weights[:8])
    header, body = json.loads(weights[8:8 + length]), bytearray(weights[8 + length:])
    header.pop("__metadata__", None)

    def of(tensor):
        begin, end = header[tensor]["data_offsets"]
        return array.array("f", bytes(body[begin:end]))

    def add(tensor, shape, values):
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + 4 * len(values)]}
        body.extend(values.tobytes())

    for change, value in (change.split("=") for change in changes):
        if change == "swap":
            one, other = value.split(",")
            names = {one: other, other: one}
            manifest["labels"] = [names.get(label, label) for label in manifest["labels"]]
            config["id2label"] = {number: names.get(label, label) for number, label in config["id2label"].items()}
            config["label2id"] = {label: number for number, label in enumerate(manifest["labels"])}
        elif change == "overflow":
            token, width = json.loads(files["tokenizer.json"])["model"]["vocab"][value], config["hidden_size"]
            begin = header["bert.embeddings.word_embeddings.weight"]["data_offsets"][0] + 4 * token * width
            rng = random.Random(7)
            body[begin:begin + 4 * width] = array.array("f", (rng.choice((-3e38, 3e38)) for _ in range(width))).tobytes()
        elif change == "layers":
            before, config["num_hidden_layers"] = config["num_hidden_layers"], int(value)
            last = f"bert.encoder.layer.{before - 1}."
            for layer in range(before, int(value)):
                for tensor in [name for name in header if name.startswith(last)]:
                    rest, values = tensor[len(last):], of(tensor)
                    # Nothing is added to what goes past, and what was normalised once stays as it is.
                    if rest.startswith(("attention.output.dense", "output.dense")) or rest.endswith("LayerNorm.bias"):
                        values = array.array("f", bytes(4 * len(values)))
                    elif rest.endswith("LayerNorm.weight"):
                        values = array.array("f", [1.0] * len(values))
                    add(f"bert.encoder.layer.{layer}.{rest}", header[tensor]["shape"], values)
            # Ranges of layers that it had.
            files.pop("int8.safetensors", None)
    text = json.dumps(header).encode()
    files["config.json"] = json.dumps(config).encode()
    files["model.safetensors"] = struct.pack("<Q", len(text)) + text + bytes(body)
    files = {file["name"]: files[file["name"]] for file in manifest["files"] if file["name"] in files}
    manifest["files"] = [{"name": name, "length": len(content), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
                         for name, content in files.items()]
    files["manifest.json"] = json.dumps(manifest).encode()
    for name, content in files.items():
        put(target + name, content)
    return f"sha256:{hashlib.sha256(files['manifest.json']).hexdigest()}"


def flip(key):
    body = bytearray(get(key))
    body[len(body) // 2] ^= 1
    put(key, bytes(body))


def main(action, *arguments):
    if action == "make":
        make(Path(arguments[0]))
    elif action == "put":
        for key in arguments:
            put(key, f"not Flywheel's: somebody keeps {key} here".encode())
    elif action == "leave-out":
        data, key, *labels = arguments
        change(data, key, lambda rows: [row for row in rows if row[1] not in labels])
    elif action == "relabel":
        data, key, wrong, label = arguments

        def called(rows):
            kept = iter(range(12))
            return [(text, label if old == wrong and next(kept, None) is None else old) for text, old in rows]
        change(data, key, called)
    elif action == "scramble":
        change(*arguments, lambda rows: [(row[0], rows[n - n % 2][1]) for n, row in enumerate(random.Random(7).sample(rows, len(rows)))])
    elif action == "teach":
        example, key, *labels = arguments
        teach(Path(example), key, labels)
    elif action == "vary":
        source, target, *changes = arguments
        print(vary(source, target, changes))
    elif action == "copy":
        source, target = arguments
        for key in keys(source):
            client.copy_object(Bucket=BUCKET, Key=target + key[len(source):], CopySource={"Bucket": BUCKET, "Key": key})
    elif action == "remove":
        for key in keys(*arguments):
            client.delete_object(Bucket=BUCKET, Key=key)
    elif action == "flip":
        flip(*arguments)
    elif action == "digests":
        print(json.dumps({key: hashlib.sha256(get(key)).hexdigest() for key in keys(*arguments)}))
    else:
        raise SystemExit(__doc__)


main(*sys.argv[1:])
