"""The peer of crates/learn/tests/parity.rs: the same networks, computed by `transformers`.

parity.py make DIR        writes DIR/<model_type>/{config.json,model.safetensors,tokenizer.json,cases.json}
parity.py check DIR...    loads the artifact in each DIR with AutoModelForSequenceClassification and compares its logits
                          and labels with those in DIR/expected.json ({"ids", "logits", "labels"})
parity.py train DIR       trains the model in each DIR/<model_type> as its training.json says ({"ids", "labels", "batches",
                          "learningRate", "weightDecay", "warmupSteps"}), without dropout, and writes the loss of every
                          step to its losses.json
"""

import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import get_parameter_names

TOLERANCE = 1e-5
LABELS = 3
MAX_TOKENS = 512

BERT = {"special": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "first": "[CLS]", "last": "[SEP]", "unknown": "[UNK]"}
ROBERTA = {"special": ["<s>", "<pad>", "</s>", "<unk>"], "first": "<s>", "last": "</s>", "unknown": "<unk>"}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
DISTIL_SIZES = {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128}
ARCHITECTURES = {
    "bert": (BertConfig, BERT, SIZES | {"max_position_embeddings": 512, "layer_norm_eps": 1e-12, "pad_token_id": 0}),
    "distilbert": (DistilBertConfig, BERT, DISTIL_SIZES | {"max_position_embeddings": 512, "pad_token_id": 0}),
    "roberta": (
        RobertaConfig,
        ROBERTA,
        SIZES | {"max_position_embeddings": 514, "layer_norm_eps": 1e-5, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "xlm-roberta": (
        XLMRobertaConfig,
        ROBERTA,
        SIZES | {"max_position_embeddings": 514, "layer_norm_eps": 1e-5, "pad_token_id": 1, "type_vocab_size": 1},
    ),
}


def texts():
    """64 texts of very different lengths and scripts."""
    base = [
        "Where is my card?",
        "I still have not received my new card, it was ordered more than a week ago 😡😡",
        "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳 ✨",
        "我的银行卡丢了，请帮我冻结账户。",
        "カードが届きません。どうすればいいですか？",
        "카드를 어디에서 받을 수 있나요?",
        "أين بطاقتي الجديدة؟ لقد طلبتها منذ أسبوع",
        "איפה הכרטיס החדש שלי?",
        "Где моя карта? Я заказал её неделю назад.",
        "मेरा कार्ड कहाँ है?",
        "naïve café – ﬁnancial ﬂow “quotes” … ½ ≠ ⅓",
        "a",
        "!!!",
        "12345 67890 €3,50 $1.20",
        "mixed العربية and English and 中文 in one 🙂 sentence",
        "ALL CAPS AND\ttabs\nand lines",
    ]
    out = list(base)
    for i in range(64 - len(base) - 1):
        a, b = base[i % len(base)], base[(i * 7 + 3) % len(base)]
        out.append(f"{a} {i} {b}" if i % 2 else f"{b} / {a} " * (1 + i % 5))
    out.append(" ".join(f"{'word' if i % 3 else 'слово'}{i % 37}" for i in range(400)))
    assert len(out) == 64
    return out


def tokenizer(kind, corpus):
    tok = Tokenizer(models.BPE(unk_token=kind["unknown"]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=kind["special"], initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(corpus, trainer)
    ends = [(name, tok.token_to_id(name)) for name in (kind["first"], kind["last"])]
    tok.post_processor = processors.TemplateProcessing(single=f"{kind['first']} $A {kind['last']}", special_tokens=ends)
    tok.enable_truncation(MAX_TOKENS)
    return tok


def scale(model):
    """Weights at which every part of the network counts: pre-activations and hidden states of deviation about 1, small
    embeddings (so that the epsilon of the first layer norm is felt), layer norms that are not the identity."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name or "layer_norm.weight" in name:
                parameter.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif "embeddings" in name:
                parameter.normal_(0.0, 0.05)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)


@torch.no_grad()
def logits(model, ids):
    """One row at a time, so that nothing is padded here and padding is tested on the other side."""
    model.eval()
    rows, deviations = [], []
    for row in ids:
        row = torch.tensor([row])
        out = model(input_ids=row, attention_mask=torch.ones_like(row), output_hidden_states=True)
        rows.append(out.logits[0].tolist())
        deviations.append(torch.stack([h.std() for h in out.hidden_states]))
    return rows, torch.stack(deviations).mean().item()


def make(root):
    corpus = texts()
    for seed, (model_type, (config_class, kind, sizes)) in enumerate(ARCHITECTURES.items()):
        torch.manual_seed(seed)
        tok = tokenizer(kind, corpus)
        config = config_class(vocab_size=tok.get_vocab_size(), num_labels=LABELS, **sizes)
        model = AutoModelForSequenceClassification.from_config(config)
        scale(model)
        folder = root / model_type
        model.save_pretrained(folder)
        tok.save(str(folder / "tokenizer.json"))
        ids = [tok.encode(text).ids for text in corpus]
        rows, deviation = logits(model, ids)
        lengths = [len(row) for row in ids]
        assert 0.7 < deviation < 1.4, f"{model_type}: hidden states have deviation {deviation}"
        assert min(lengths) < 5 and max(lengths) == MAX_TOKENS, lengths
        (folder / "cases.json").write_text(json.dumps({"ids": ids, "logits": rows}))
        print(f"{model_type}: {len(ids)} texts of {min(lengths)} to {max(lengths)} tokens, deviation {deviation:.2f}")


def check(folder):
    cases = json.loads((pathlib.Path(folder) / "expected.json").read_text())
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    problems = {name: found for name, found in loading.items() if found}
    assert not problems, f"not loaded cleanly: {problems}"
    assert model.dtype == torch.float32, model.dtype
    assert model.config.problem_type == "single_label_classification", model.config.problem_type
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    assert labels == cases["labels"], (labels, cases["labels"])
    rows, _ = logits(model, cases["ids"])
    difference = (torch.tensor(rows) - torch.tensor(cases["logits"])).abs().max().item()
    print(f"{type(model).__name__}: max difference of {len(rows)} rows {difference:.2e}")
    assert difference <= TOLERANCE, difference


def train(folder):
    """The loop of Hugging Face's Trainer in its plainest form: AdamW in two groups, clipping to 1, linear schedule."""
    job = json.loads((folder / "training.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.eval()  # no dropout; gradients flow all the same
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], [r"bias"]))
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": job["weightDecay"]},
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=job["learningRate"])
    schedule = get_linear_schedule_with_warmup(optimiser, job["warmupSteps"], len(job["batches"]))
    losses = []
    for rows in job["batches"]:
        ids = [torch.tensor(job["ids"][row]) for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        pad = torch.nn.utils.rnn.pad_sequence
        loss = model(
            input_ids=pad(ids, batch_first=True, padding_value=model.config.pad_token_id),
            attention_mask=pad(mask, batch_first=True),
            labels=torch.tensor([job["labels"][row] for row in rows]),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    (folder / "losses.json").write_text(json.dumps(losses))


def main():
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["make", root]:
            make(pathlib.Path(root))
        case ["check", *folders] if folders:
            for folder in folders:
                check(folder)
        case ["train", root]:
            for model_type in ARCHITECTURES:
                train(pathlib.Path(root) / model_type)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
