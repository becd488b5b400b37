#!/usr/bin/env python3
"""Peers of our serving, without HTTP: the same classifier in ONNX Runtime and OpenVINO.

`export ARTIFACT OUT TEXTS` writes the model in each form (TEXTS: a CSV with a column text, for calibration).
`run KIND MODEL BATCHES SECONDS [--one-by-one]` answers batches of rows of token ids over and over on one thread: padded to the
longest of the batch, or one row at a time. Prints one JSON line: {"rows", "cpuSeconds", "labels"}.
"""
import csv
import json
import os
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import numpy

CALIBRATED_ON = 300


def export(artifact, out, texts):
    import nncf
    import openvino
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(artifact, attn_implementation="eager").eval()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    ids = torch.randint(1000, 20000, (2, 16))
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["logits"]}
    axes = {n: {0: "rows", 1: "length"} for n in names["input_names"]}
    torch.onnx.export(Logits(), (ids, torch.ones_like(ids)), out / "model.onnx", **names, dynamic_axes={**axes, "logits": {0: "rows"}},
                      opset_version=17, dynamo=False)
    optimized = optimizer.optimize_model(str(out / "model.onnx"), model_type="bert", num_heads=model.config.num_attention_heads,
                                         hidden_size=model.config.hidden_size, opt_level=1, optimization_options=FusionOptions("bert"))
    optimized.save_model_to_file(str(out / "optimized.onnx"))
    quantize_dynamic(out / "model.onnx", out / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    with open(texts, newline="", encoding="utf-8") as file:
        rows = [r["text"] for r in csv.DictReader(file)][:CALIBRATED_ON]
    data = [numpy.array([tokenizer(t, truncation=True, max_length=128)["input_ids"]], dtype=numpy.int64) for t in rows]
    dataset = nncf.Dataset(data, lambda ids: {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})
    int8 = nncf.quantize(openvino.Core().read_model(out / "model.onnx"), dataset, model_type=nncf.ModelType.TRANSFORMER,
                         subset_size=CALIBRATED_ON)
    openvino.save_model(int8, out / "int8.xml")


def padded(rows):
    longest = max(map(len, rows))
    ids, mask = (numpy.zeros((len(rows), longest), dtype=numpy.int64) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, :len(row)], mask[i, :len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def onnx(model):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0]


def openvino(model, hint, shape):
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    if shape:
        # Fixed shapes are what it is fastest with.
        network.reshape({"input_ids": shape, "attention_mask": shape})
    compiled = core.compile_model(network, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint,
                                                    "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False})
    request = compiled.create_infer_request()
    return lambda feed: next(iter(request.infer(feed).values()))


def run(kind, model, batches, seconds, one_by_one):
    batches = json.loads(Path(batches).read_text())
    shapes = {(len(b), len(r)) for b in batches for r in b}
    shape = list(next(iter(shapes))) if len(shapes) == 1 else None
    if one_by_one and shape:
        shape[0] = 1
    infer = onnx(model) if kind == "onnx" else openvino(model, kind.removeprefix("openvino-"), shape)
    feeds = [[padded([row]) for row in b] if one_by_one else [padded(b)] for b in batches]
    labels = [int(label) for batch in feeds for feed in batch for label in infer(feed).argmax(1)]
    rows, before, start, place = 0, time.process_time(), time.monotonic(), 0
    while time.monotonic() - start < seconds:
        for feed in feeds[place % len(feeds)]:
            rows += len(infer(feed))
        place += 1
    print(json.dumps({"rows": rows, "cpuSeconds": time.process_time() - before, "labels": labels}))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    command, *arguments = sys.argv[1:]
    if command == "export":
        export(Path(arguments[0]), Path(arguments[1]), arguments[2])
    else:
        kind, model, batches, seconds = arguments[:4]
        run(kind, model, batches, float(seconds), "--one-by-one" in arguments[4:])
