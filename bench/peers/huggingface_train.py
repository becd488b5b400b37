#!/usr/bin/env python3
"""Peer of our training: the same fine-tuning with Hugging Face transformers' Trainer, as its documentation sets it up, and what
people tune it with by options.

Reads the three CSV files that the benchmark wrote for both sides (text,label), so that both learn from the same rows.
Prints one JSON line: {"accuracy", "macroF1", "loss", "seconds", "cpuSeconds"}; times are those of the training, all steps and the
validation after each epoch.
"""
import argparse
import csv
import json
import time

import numpy
import torch
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments,
                          set_seed)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [(r["text"], r["label"]) for r in csv.DictReader(file)]


class Encoded(torch.utils.data.Dataset):
    def __init__(self, tokenizer, data, labels, max_length):
        self.encodings = tokenizer([t for t, _ in data], truncation=True, max_length=max_length)
        self.labels = [labels[l] for _, l in data]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {**{k: v[i] for k, v in self.encodings.items()}, "labels": self.labels[i]}


def macro_f1(truth, answer, classes):
    scores = []
    for c in range(classes):
        hit = ((answer == c) & (truth == c)).sum()
        total = (answer == c).sum() + (truth == c).sum()
        scores.append(2 * hit / total if total else 0.0)
    return float(numpy.mean(scores))


def main():
    p = argparse.ArgumentParser()
    for name in ("train", "validation", "test", "model", "out"):
        p.add_argument(f"--{name}", required=True)
    p.add_argument("--epochs", type=int, required=True)
    p.add_argument("--batch-size", type=int, required=True)
    p.add_argument("--learning-rate", type=float, required=True)
    p.add_argument("--weight-decay", type=float, required=True)
    p.add_argument("--warmup-ratio", type=float, required=True)
    p.add_argument("--max-length", type=int, required=True)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--threads", type=int, required=True)
    p.add_argument("--sampling", default="random", help="group_by_length: batches of like lengths, as ours are")
    p.add_argument("--optimizer", default="adamw_torch_fused")
    p.add_argument("--attention", default="sdpa")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--matmul-precision", default="highest")
    p.add_argument("--fp16", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    a = p.parse_args()
    torch.set_float32_matmul_precision(a.matmul_precision)
    torch.set_num_threads(a.threads)
    set_seed(a.seed)
    train, validation, test = rows(a.train), rows(a.validation), rows(a.test)
    labels = {l: i for i, l in enumerate(sorted({l for _, l in train}))}
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=len(labels), attn_implementation=a.attention)
    sets = [Encoded(tokenizer, s, labels, a.max_length) for s in (train, validation, test)]
    steps = -(-len(train) // a.batch_size) * a.epochs
    arguments = TrainingArguments(
        output_dir=a.out, num_train_epochs=a.epochs, per_device_train_batch_size=a.batch_size, per_device_eval_batch_size=64,
        learning_rate=a.learning_rate, weight_decay=a.weight_decay, warmup_steps=round(a.warmup_ratio * steps), seed=a.seed,
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="accuracy",
        train_sampling_strategy=a.sampling, optim=a.optimizer, bf16=a.bf16, fp16=a.fp16, torch_compile=a.compile, report_to=[],
        use_cpu=a.device == "cpu",
        disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=sets[0], eval_dataset=sets[1],
                      data_collator=DataCollatorWithPadding(tokenizer),
                      compute_metrics=lambda e: {"accuracy": float((e.predictions.argmax(-1) == e.label_ids).mean())})
    start, before = time.monotonic(), time.process_time()
    trained = trainer.train()
    seconds, processor = time.monotonic() - start, time.process_time() - before
    out = trainer.predict(sets[2])
    answer = out.predictions.argmax(-1)
    print(json.dumps({"accuracy": float((answer == out.label_ids).mean()), "macroF1": macro_f1(out.label_ids, answer, len(labels)),
                      "loss": trained.training_loss, "seconds": seconds, "cpuSeconds": processor}))


if __name__ == "__main__":
    main()
