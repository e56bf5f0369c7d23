"""What adapting costs: seconds, memory and what is kept, beside a linear probe, LoRA, kNN and the paper's formula.

    python examples/benchmarks/paper_cost.py [--tasks images texts] [--device cuda] [--output DIR]
    python examples/benchmarks/paper_cost.py --small [--images DIR] [--pairs FILE]

Each method runs in a process of its own, after a warm-up on a few samples, and starts from what all share: features of
the images, computed once, or the open language model. "to adapt" is from there to something that predicts; "peak" the
memory beyond what was there before (CUDA's allocator; on a CPU resident memory, Linux only); "kept" what predicting
needs beside the model; "to predict one" the time per held-out sample: from its features to a label, or sixteen tokens
of an answer, eight answers at a time. All language models learn the answers' tokens of the same pairs under the same
prompts and are judged on the same held-out ones. What LoRA reaches, and how long it takes, depends on its ``--epochs``
and ``--rate``, which are set by hand and shown in its row: try several before comparing.

Methods on features: ``FaastClassifier``; the paper's formula as it stands in its code, ``pinv(K, rtol=N**-0.8) @ V`` by
SVD; a linear probe, twenty epochs of SGD with momentum on standardised features; kNN, which keeps all examples. On
language models: ``FaastSeq2Seq``; the paper's output memory by this library (``target="embedding"``), and by the
formula with all hidden states kept; LoRA of rank 8 on all linear layers, AdamW (``peft``); five pairs in the prompt.

Needs, without ``--small``, what ``paper_vision.py`` and ``paper_language.py`` need: CIFAR-10 through CLIP's RN50, and
2,000 pairs of IWSLT2017 En-De on Qwen2.5-3B-Instruct (a GPU with 40 GB or more, mostly for LoRA). Without a network:
``--data``, ``--weights`` and ``--language-model hf:FOLDER`` name local copies, ``--features`` and ``--pairs`` data of
your own. A run that was killed goes on with the methods that are missing.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import paper_language
import paper_vision
import torch
from experiment import Cell, UnavailableError, run
from language import resident

from faast_sklearn import FaastClassifier, FaastSeq2Seq, backbone, save
from faast_sklearn.backbones.device import resolve_device
from faast_sklearn.language.padding import pad_rows
from faast_sklearn.language.prompts import Prompts

SEED = 0
RTOL = 0.8  # alpha of the paper
WEIGHT = 0.9  # of what is recalled, in the paper's output memory
EPOCHS = 20  # of the linear probe
BATCH = 8  # pairs a pass, of every method
NEW_TOKENS = 16  # of every answer that is timed
IN_PROMPT = "five pairs in the prompt"
CLEAR = pathlib.Path("/proc/self/clear_refs")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else [str(one) for one in argv]
    args = parse_arguments(argv)
    if args.measure:
        print(json.dumps(in_child(args)))
        return None
    tables = {}
    for task in args.tasks:
        methods = METHODS[task]
        # Made when the first method is measured; each reads them in its own process.
        common = functools.cache(functools.partial(image_features, args)) if task == "images" else lambda: None
        cells = []
        for name in methods:
            measure = functools.partial(in_process, argv, task, name, common)
            cells.append(Cell({"data": data_of(args, task), "method": name}, measure))
        settings = {name: value for name, value in vars(args).items() if name not in ("output", "tasks", "measure")}
        tables[task] = run(f"paper_cost_{task}", cells, output=args.output, settings=settings)
    return tables


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: both")
    parser.add_argument("--small", action="store_true", help="small data and models from packages, without a network")
    parser.add_argument("--images", metavar="DIR", help="with --small: a folder with one folder of images per class")
    parser.add_argument(
        "--features", metavar="FILE", help="an .npz of X, y, X_query and y_query (labels from 0), in place of images"
    )
    parser.add_argument("--pairs", metavar="FILE", help="tab-separated pairs under headings, in place of IWSLT")
    parser.add_argument(
        "--data",
        nargs="+",
        type=paper_language.named,
        default=[],
        metavar="NAME=FOLDER",
        help="local copies: cifar10, and iwslt with iwslt2017-en-de/SPLIT/*.parquet in it",
    )
    parser.add_argument("--weights", metavar="FILE", help="of RN50, where they are not to be downloaded")
    parser.add_argument(
        "--language-model", metavar="SPEC", help="default: hf:Qwen/Qwen2.5-3B-Instruct, or SmolLM2-135M"
    )
    parser.add_argument("--limit", type=int, help="most pairs to learn (default: 2,000; 40 with --small)")
    parser.add_argument("--epochs", type=int, default=3, help="of LoRA (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="learning rate of LoRA (default: 2e-4; 2e-3 with --small)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--output", default="paper_cost", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # how the script calls itself
    args = parser.parse_args(argv)
    args.data = dict(args.data)
    for name in args.data:
        if name not in ("cifar10", "iwslt"):
            parser.error(f"--data: {name!r} is not cifar10=FOLDER or iwslt=FOLDER")
    args.limit = args.limit or (40 if args.small else 2000)
    # The usual 2e-4 gets nowhere in the fifteen steps that --small has.
    args.rate = args.rate or (2e-3 if args.small else 2e-4)
    usual = "bundled:smollm2-135m" if args.small else "hf:Qwen/Qwen2.5-3B-Instruct"
    args.language_model = args.language_model or usual
    return args


def data_of(args, task):
    if task == "images":
        usual = ("images" if args.images else "digits") if args.small else "cifar10"
        return pathlib.PurePath(args.features).name if args.features else usual
    return pathlib.PurePath(args.pairs).name if args.pairs else "grammar" if args.small else "iwslt en-de"


# One process a method


def in_process(argv, task, name, common):
    """Measure a method in a process of its own, since peak memory never goes down again."""
    command = [sys.executable, __file__, *argv, "--measure", task, name]
    features = common()
    if features is not None:
        command += ["--features", str(features)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode == -9:  # SIGKILL
        raise UnavailableError("killed, as a rule for the memory it took")
    if done.returncode:
        raise SystemExit(f"{name}: failed, for the reason above; the figures of the others are kept")
    found = json.loads(done.stdout.splitlines()[-1])
    if "unavailable" in found:
        raise UnavailableError(found["unavailable"])
    return found


def in_child(args):
    """Return the figures of the one method that this process is for."""
    task, name = args.measure
    torch.manual_seed(SEED)
    try:
        return {"images": of_images, "texts": of_texts}[task](args, name)
    except UnavailableError as reason:
        return {"unavailable": str(reason)}
    except torch.OutOfMemoryError:
        return {"unavailable": "takes more memory than the device has"}


class Spent:
    """Seconds and peak memory of a block; work that was queued on a device is waited for."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device) / 2**20
        elif CLEAR.exists():
            # Memory that the warm-up has freed is returned to the system: if it were used again, it would not count.
            with contextlib.suppress(AttributeError):  # not every C library has this
                ctypes.CDLL(None).malloc_trim(0)
            CLEAR.write_text("5")  # the peak starts anew
            self.before = resident("VmRSS")
        self.start = time.perf_counter()
        return self

    def __exit__(self, *error):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self.start
        self.megabytes = None
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        elif CLEAR.exists():
            self.megabytes = resident("VmHWM") - self.before


def figures(adapting, kept, answering, n, **more):
    return {
        "to adapt, s": adapting.seconds,
        "peak, MB": adapting.megabytes,
        "kept, MB": kept / 2**20,
        "to predict one, ms": 1000 * answering.seconds / n,
        **more,
    }


def file_size(estimator):
    """Return the bytes of an estimator that only predicts."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "estimator.safetensors")
        save(estimator, file, moments=False)
        return os.path.getsize(file)


# Features of images


def image_features(args):
    """Return a file with the features of the images, made when it is not there."""
    if args.features:
        return args.features
    file = pathlib.Path(args.output, f"features-{data_of(args, 'images')}.npz")
    if not file.exists():
        name, spec = ("digits", paper_vision.BUNDLED) if args.small else ("cifar10", paper_vision.CLIP)
        where = args.images if args.small else args.data.get(name, paper_vision.HUB[name])
        task = paper_vision.task(name, where, args.small, spec, args.weights, None, args.device, args.output)
        beside = file.with_name("part-" + file.name)
        np.savez(
            beside, **{key: value for key, value in task._asdict().items() if key in ("X", "y", "X_query", "y_query")}
        )
        os.replace(beside, file)
    return file


def of_images(args, name):
    device = resolve_device(args.device)
    with np.load(args.features) as file:
        X, y, X_query, y_query = (file[name] for name in ("X", "y", "X_query", "y_query"))
    X, X_query = (torch.from_numpy(rows).to(device) for rows in (X, X_query))
    method = METHODS["images"][name]
    few = np.concatenate([np.flatnonzero(y == label)[:5] for label in range(y.max() + 1)])
    method(X[few], y[few])[0](X_query[:10])
    torch.manual_seed(SEED)
    with Spent(device) as adapting:
        predict, kept = method(X, y)
    with Spent(device) as answering:
        labels = predict(X_query)
    share = float((labels == y_query).mean())
    return figures(adapting, kept(), answering, len(y_query), **{"accuracy, %": 100 * share})


def ours(X, y):
    clf = FaastClassifier().fit(X, y)
    clf.coef_  # noqa: B018 - solves
    return clf.predict, lambda: file_size(clf)


def formula(X, y):
    onehot = torch.nn.functional.one_hot(torch.as_tensor(y)).to(X)
    W = torch.linalg.pinv(X, rtol=len(X) ** -RTOL) @ onehot
    return lambda rows: (rows @ W).argmax(1).cpu().numpy(), lambda: W.nbytes


def probe(X, y):
    mean, std = X.mean(0), X.std(0).clamp_min(1e-6)
    labels = torch.as_tensor(y, device=X.device)
    linear = torch.nn.Linear(X.shape[1], int(y.max()) + 1, device=X.device)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.01, momentum=0.9)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X)).to(X.device).split(64):
            loss = torch.nn.functional.cross_entropy(linear((X[rows] - mean) / std), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def predict(rows):
        return linear((rows - mean) / std).argmax(1).cpu().numpy()

    return predict, lambda: sum(p.nbytes for p in (*linear.parameters(), mean, std))


def neighbours(X, y, k=10):
    keys, onehot = X.clone(), torch.nn.functional.one_hot(torch.as_tensor(y)).to(X)

    def predict(rows):
        votes = [onehot[(part @ keys.T).topk(min(k, len(keys))).indices].sum(1).argmax(1) for part in rows.split(1000)]
        return torch.cat(votes).cpu().numpy()

    return predict, lambda: keys.nbytes + onehot.nbytes


# Language models


def of_texts(args, name):
    device = resolve_device(args.device)
    handle = backbone(args.language_model)
    lm = handle.open_language_model(args.device)
    size = paper_language.Sizes(args.limit, max(args.limit // 5, 4))
    root = args.data.get("iwslt", paper_language.NAMES["iwslt"])
    X, y, X_test, y_test = paper_language.pairs("en-de", args.small, args.pairs, root, size)
    chat = bool(getattr(lm.tokenizer, "chat_template", None))
    prompt = functools.partial(paper_language.chat_prompt if chat else paper_language.plain_prompt, "en-de")
    n_shown = paper_language.SHOWN if name == IN_PROMPT else 0
    prompts = Prompts(lm, functools.partial(prompt, tuple(zip(X[:n_shown], y[:n_shown], strict=True))))
    teach = functools.partial(METHODS["texts"][name], args, handle, lm, functools.partial(prompt, ()))
    with teach(X[:2], y[:2])[0]() as model:  # loads libraries, peft among them
        loss(model, lm, prompts.pairs(X_test[:1], y_test[:1]))
    del model
    gc.collect()  # what the warm-up has left would be freed while memory is measured
    torch.manual_seed(SEED)
    with Spent(device) as adapting:
        attached, kept = teach(X, y)
    questions = [one.prompt for one in prompts.questions(X_test, room=NEW_TOKENS)]
    with attached() as model:
        nll = loss(model, lm, prompts.pairs(X_test, y_test))
        answer(model, lm, questions[:1])
        with Spent(device) as answering:
            answer(model, lm, questions)
    set_by_hand = {"epochs": args.epochs, "rate": args.rate} if METHODS["texts"][name] is lora else {}
    return figures(adapting, kept(), answering, len(questions), **{"NLL per token": nll}, **set_by_hand)


def rows_of(lm, exchanges):
    """Yield ids, mask and labels of batches; labels are -100 but for the tokens of answers."""
    exchanges = list(exchanges)
    for start in range(0, len(exchanges), BATCH):
        part = exchanges[start : start + BATCH]
        ids, mask = pad_rows([[*one.prompt, *one.answer] for one in part], lm.pad_id)
        labels = torch.full_like(ids, -100)
        for row, one in zip(labels, part, strict=True):
            learnt = slice(len(one.prompt), len(one.prompt) + len(one.answer))
            row[learnt] = torch.as_tensor(one.answer)
        yield ids.to(lm.device), mask.to(lm.device), labels.to(lm.device)


def summed(model, ids, mask, labels):
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@torch.no_grad()
def loss(model, lm, exchanges):
    """Return the negative log-likelihood a token of the answers."""
    total, n_tokens = 0.0, 0
    for ids, mask, labels in rows_of(lm, exchanges):
        total += summed(model, ids, mask, labels).item()
        n_tokens += int((labels >= 0).sum())
    return total / n_tokens


@torch.no_grad()
def answer(model, lm, prompts):
    """Write answers of the same length to all prompts."""
    for start in range(0, len(prompts), BATCH):
        ids, mask = pad_rows(prompts[start : start + BATCH], lm.pad_id, "left")
        model.generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            do_sample=False,
            num_beams=1,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=lm.pad_id,
            eos_token_id=list(lm.eos_ids),
        )


def nothing(args, handle, lm, template, X, y):
    return lambda: contextlib.nullcontext(lm.module), lambda: 0


def teach_seq2seq(args, handle, lm, template, X, y, **settings):
    seq2seq = FaastSeq2Seq(handle, template=template, batch_size=BATCH, device=args.device, **settings).fit(X, y)
    seq2seq.alpha_  # noqa: B018 - solves
    return seq2seq.attached, lambda: file_size(seq2seq.set_params(template=None))


def recall(args, handle, lm, template, X, y):
    """Learn the paper's output memory from all hidden states at once, by the formula as it stands."""
    if lm.final_norm is None:
        raise UnavailableError("this model has no norm in front of its output")
    seen, keys, values = [], [], []
    embeddings = lm.module.get_input_embeddings().weight
    hook = lm.final_norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        for ids, mask, labels in rows_of(lm, Prompts(lm, template).pairs(X, y)):
            lm.module(input_ids=ids, attention_mask=mask, use_cache=False)
            learnt = labels[:, 1:] >= 0
            keys.append(seen.pop()[:, :-1][learnt].float())
            values.append(embeddings[ids[:, 1:][learnt]].float())
    hook.remove()
    K, V = torch.cat(keys), torch.cat(values)
    W = torch.linalg.pinv(K, rtol=len(K) ** -RTOL) @ V

    @contextlib.contextmanager
    def attached():
        def mixed(module, given):
            states = given[0].float()
            return ((1 - WEIGHT) * states + WEIGHT * states @ W).to(given[0].dtype), *given[1:]

        hook = lm.final_norm.register_forward_pre_hook(mixed)
        try:
            yield lm.module
        finally:
            hook.remove()

    return attached, lambda: W.nbytes


def lora(args, handle, lm, template, X, y):
    try:
        import peft
    except ImportError:
        raise UnavailableError('needs peft: pip install ".[benchmarks]"') from None
    if lm.encoder_decoder:
        raise UnavailableError("decoders only")
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(lm.module, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate)
    exchanges = list(Prompts(lm, template).pairs(X, y))
    for _ in range(args.epochs):
        order = torch.randperm(len(exchanges)).tolist()
        for ids, mask, labels in rows_of(lm, [exchanges[i] for i in order]):
            mean = summed(model, ids, mask, labels) / (labels >= 0).sum()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
    model.eval()

    @contextlib.contextmanager
    def attached():
        try:
            yield model
        finally:
            model.unload()  # its layers were put into the model itself
            vars(lm.module).pop("peft_config", None)  # peft 0.18 leaves it there

    return attached, lambda: sum(p.nbytes for p in trained)


METHODS = {
    "images": {
        "FaastClassifier()": ours,
        "the paper's formula, SVD": formula,
        "linear probe, SGD": probe,
        "kNN": neighbours,
    },
    "texts": {
        "frozen": nothing,
        "FaastSeq2Seq()": teach_seq2seq,
        "the paper's memory": functools.partial(
            teach_seq2seq, target="embedding", solver="pinv", alpha=RTOL, memory_weight=WEIGHT
        ),
        "the paper's formula, SVD": recall,
        "LoRA, rank 8": lora,
        IN_PROMPT: nothing,
    },
}


if __name__ == "__main__":
    main()
