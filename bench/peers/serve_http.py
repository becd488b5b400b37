#!/usr/bin/env python3
"""Peers of our server: FastAPI in front of a classifier, as tutorials show it.

`serve_http.py ARTIFACT PORT MODE [MODEL]`: MODE `padded` pads every text to 256 tokens and `plain` does not, both with transformers,
one request at a time; `onnx` is `plain` with the ONNX model given.
"""
import sys

import numpy
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

artifact, port, mode = sys.argv[1:4]
torch.set_num_threads(1)
app = FastAPI()
tokenizer = AutoTokenizer.from_pretrained(artifact)
if mode == "onnx":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[4], options, providers=["CPUExecutionProvider"])
else:
    model = AutoModelForSequenceClassification.from_pretrained(artifact).eval()


class Text(BaseModel):
    text: str


@app.post("/predict")
def predict(body: Text):
    padding = {"padding": "max_length", "max_length": 256} if mode == "padded" else {"max_length": 128}
    kind = "np" if mode == "onnx" else "pt"
    encoded = tokenizer(body.text, truncation=True, return_tensors=kind, **padding)
    if mode == "onnx":
        logits = torch.from_numpy(session.run(None, {k: encoded[k].astype(numpy.int64) for k in ("input_ids", "attention_mask")})[0])
    else:
        with torch.no_grad():
            logits = model(**encoded).logits
    probabilities = torch.softmax(logits, dim=-1)[0]
    label = int(probabilities.argmax())
    return {"label": label, "probability": float(probabilities[label]), "all_probs": probabilities.tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
