"""The paper's experiments on language: sentiment, translation and perplexity, its figures beside what is measured here.

    python examples/benchmarks/paper_language.py [--tasks sst2 imdb iwslt wikitext] [--device cuda] [--output DIR]
    python examples/benchmarks/paper_language.py --small

Needs a GPU, the package ``datasets``, and a network for data and models: the published checkpoints of GPT-2 XL,
Qwen2.5-3B-Instruct and Qwen2.5-7B-Instruct, which hold their base model's weights too; one is open at a time, and the
largest takes 16 GB in bfloat16 beside its statistics. ``--model NAME=FOLDER`` and ``--data TASK=FOLDER`` name local
copies. ``--small`` needs no network: SmolLM2-135M from a package, the reviews and the grammar of the examples in the
folder above, and docstrings of the standard library. Each task has its own table; a run that was killed goes on with
the cells that are missing.

Rows: the frozen model; examples in its prompt; the paper's memories ("memories" says how many: a published checkpoint
has several, any other model only the output memory); and ``FaastSeq2Seq`` with its defaults, on the same weights.

Settings of the paper are those of its code (github.com/baoguangsheng/faast): prompts, learning from every token, 5,000
samples to learn ("full") and to test on, 20,000 lines of WikiText-103, an alpha for each model, data set and number of
examples, weight 0.9, five beams, windows of 1,024 tokens. What differs: it draws new examples for every question,
while here ``--draws`` draws share the questions among them; it tests on SST-2's 872 sentences several times over;
it compares the first token of two answers, this library whole answers with their end; and it averages the weights of
chunks of 65,536 tokens, while here all tokens are solved for at once. Examples in a prompt are cut so that together
they take half of the context.

Data sets on the hub: stanfordnlp/sst2 (its validation split to test on, since labels of its test split are hidden),
stanfordnlp/imdb, Salesforce/wikitext (wikitext-103-raw-v1), and IWSLT/iwslt2017 in the hub's own conversion to parquet,
since ``datasets`` runs no loading scripts any more.
"""

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import math
import pathlib
import sys
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from experiment import Cell, UnavailableError, first_line, load_dataset, run
from tqdm.auto import tqdm

from faast_sklearn import FaastSeq2Seq, backbone, release_backbones
from faast_sklearn.backbones import BackboneHandle
from faast_sklearn.errors import FaastError
from faast_sklearn.language import FastWeightLM
from faast_sklearn.language.scoring import text_score

SEED = 42
SHOWN = 5  # pairs in the prompt of a translation
METHODS = ("frozen", "in-context", "paper", "ours")
SHOTS = {"sst2": (1, 5, "full"), "imdb": (1, 2, "full")}
LABELS = ["negative", "positive"]
REVIEW = "Review: {source}\nSentiment: {target}\n"
LANGUAGES = {"en": "English", "de": "German", "fr": "French"}
DIRECTIONS = ("en-de", "de-en", "en-fr", "fr-en")
PAPER = {"target": "embedding", "solver": "pinv", "memory_weight": 0.9}
LINES_A_CALL = 10_000
NAMES = {
    "sst2": "stanfordnlp/sst2",
    "imdb": "stanfordnlp/imdb",
    "iwslt": "hf://datasets/IWSLT/iwslt2017@refs/convert/parquet",
    "wikitext": "Salesforce/wikitext",
}


@dataclass(frozen=True)
class Sizes:
    """How much of a task is learnt and tested on, and how long texts may be."""

    learn: int
    test: int
    window: int = 1024
    new_tokens: int = 60
    num_beams: int = 5


FULL = {
    "sst2": Sizes(5000, 5000),
    "imdb": Sizes(5000, 5000),
    "iwslt": Sizes(5000, 5000),
    "wikitext": Sizes(20_000, 20_000),  # lines
}
SMALL = {
    "sst2": Sizes(40, 20),
    "imdb": Sizes(40, 20),
    "iwslt": Sizes(40, 8, new_tokens=24, num_beams=1),
    "wikitext": Sizes(120, 40, window=128),  # docstrings
}


@dataclass(frozen=True)
class Model:
    """A language model, and alpha in the paper's code: of few examples, and what it gains up to a hundred and more."""

    name: str
    spec: str
    alphas: dict = field(default_factory=dict)

    def alpha(self, what, shots):
        """Return alpha for a data set or direction, and a number of examples per class or "full"."""
        few, gain = self.alphas.get(what, (0.8, 0.0))
        return few + gain * min(100 if shots == "full" else shots, 100) / 100


GPT2 = (Model("gpt2-xl", "hf:gshbao/faast-gpt2-xl", {"sst2": (0.9, 0.1), "imdb": (0.6, 0.1)}),)
QWEN = tuple(
    Model(name, f"hf:gshbao/faast-{name}", {one: (few, gain) for one, few in zip(DIRECTIONS, alphas, strict=True)})
    for name, gain, alphas in (
        ("Qwen2.5-3B-Instruct", 0.3, (0.5, 0.6, 0.5, 0.6)),
        ("Qwen2.5-7B-Instruct", 0.2, (1.0, 0.8, 0.6, 0.9)),
    )
)
SMOLLM2 = (Model("SmolLM2-135M", "bundled:smollm2-135m"),)
# Of the paper; those of examples in the prompt are on the page of the checkpoint of GPT-2 XL.
PUBLISHED = {
    ("sst2", "gpt2-xl", "frozen", 0): 74.3,
    ("sst2", "gpt2-xl", "in-context", 1): 59.6,
    ("sst2", "gpt2-xl", "in-context", 5): 71.6,
    ("sst2", "gpt2-xl", "paper", 1): 78.5,
    ("sst2", "gpt2-xl", "paper", 5): 80.8,
    ("sst2", "gpt2-xl", "paper", "full"): 87.5,
    ("imdb", "gpt2-xl", "frozen", 0): 85.7,
    ("imdb", "gpt2-xl", "in-context", 1): 70.1,
    ("imdb", "gpt2-xl", "in-context", 2): 56.0,
    ("imdb", "gpt2-xl", "paper", 1): 86.7,
    ("imdb", "gpt2-xl", "paper", 2): 87.4,
    ("imdb", "gpt2-xl", "paper", "full"): 90.4,
    ("wikitext", "gpt2-xl", "frozen", 0): 17.41,
    ("wikitext", "gpt2-xl", "paper", "full"): 13.23,
    **{
        (direction, model.name, "paper", "full"): bleu
        for model, figures in zip(QWEN, ((25.22, 36.40, 35.09, 42.47), (27.75, 37.10, 37.08, 43.93)), strict=True)
        for direction, bleu in zip(DIRECTIONS, figures, strict=True)
    },
}


def main(argv=None):
    args = parse_arguments(argv)
    tables = {}
    for task in args.tasks:
        settings = {
            "small": args.small,
            "limit": args.limit,
            "draws": args.draws,
            "alpha": args.alpha,
            "models": {model.name: model.spec for model in models(args, task)},
            "data": args.data.get(task),
            "pairs": args.pairs if task == "iwslt" else None,
            "device": args.device,
        }
        tables[task] = run(f"paper_{task}", list(TASKS[task](args)), output=args.output, settings=settings)
    return tables


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all; with --small all but imdb")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows (default: all)")
    parser.add_argument("--small", action="store_true", help="small data and a small model, without a network")
    parser.add_argument(
        "--model",
        nargs="+",
        type=named,
        default=[],
        metavar="[NAME=]SPEC",
        help="where the model NAME of the table is; or, without NAME, another one in its place",
    )
    parser.add_argument(
        "--base-config",
        nargs="+",
        type=named,
        default=[],
        metavar="[NAME=]PATH",
        help="where the configuration of a checkpoint's base model is (default: its name on the hub)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=named,
        default=[],
        metavar="TASK=NAME",
        help="another name on the hub, or a folder; of iwslt one that has iwslt2017-DIRECTION/SPLIT/*.parquet",
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=named,
        default=[],
        metavar="[DIRECTION=]FILE",
        help="tab-separated pairs under headings, their last fifth to test on, in place of IWSLT; en-de by default",
    )
    parser.add_argument("--draws", type=int, help="draws of few examples (default: 100; with --small 2)")
    parser.add_argument("--limit", type=int, help="most samples to learn, and to test on (default: the paper's)")
    parser.add_argument(
        "--alpha", type=float, help="of the paper's memories (default: as its code has them, 0.8 where it has none)"
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--output", default="paper_language", metavar="DIR", help="for figures (default: %(default)s)")
    args = parser.parse_args(argv)
    known = {model.name for model in (*GPT2, *QWEN, *SMOLLM2)}
    for option, allowed in (("model", known), ("base_config", known), ("data", set(NAMES))):
        for name, _ in getattr(args, option):
            if name not in allowed and not (name is None and option != "data"):
                parser.error(f"--{option.replace('_', '-')}: {name!r} is not one of {', '.join(sorted(allowed))}")
    args.data = dict(args.data)
    args.pairs = {name or "en-de": file for name, file in args.pairs}
    for direction in args.pairs:
        if len(direction.split("-")) != 2:
            parser.error(f"--pairs: {direction!r} is not a direction such as en-de")
    # The small reviews stand for both data sets of reviews.
    args.tasks = args.tasks or [task for task in TASKS if not (args.small and task == "imdb")]
    args.draws = args.draws or (2 if args.small else 100)
    return args


def named(text):
    """Split NAME=VALUE; without a name, the name is None."""
    name, found, value = text.partition("=")
    return (name, value) if found else (None, text)


def sizes(args, task):
    """Return the sizes of a task as the command line has them."""
    usual = (SMALL if args.small else FULL)[task]
    return usual if args.limit is None else replace(usual, learn=args.limit, test=args.limit)


def published(args, *place):
    """Return the paper's figure; there is none for what is measured on other data."""
    return None if args.small or args.pairs else PUBLISHED.get(place)


# Models


def models(args, task):
    """Return the models of a task, replaced by those of the command line."""
    usual, given = SMOLLM2 if args.small else QWEN if task == "iwslt" else GPT2, dict(args.model)
    if None in given:
        name = pathlib.PurePath(given[None].rpartition(":")[2]).name
        return (Model(name, given[None]),)
    return tuple(replace(model, spec=given.get(model.name, model.spec)) for model in usual)


class Opened(NamedTuple):
    """An open language model, with the memories of a published checkpoint and without."""

    handle: BackboneHandle
    plain: BackboneHandle
    lm: object


_open = {}  # one at most: two large models may not fit


def opened(model, args):
    """Return an open model; the one that was open before is released."""
    configs = dict(args.base_config)
    config = configs.get(model.name, configs.get(None))
    key = (model.spec, config, args.device)
    if key not in _open:
        _open.clear()
        release_backbones()
        spec = model.spec if ":" in model.spec or pathlib.Path(model.spec).exists() else f"hf:{model.spec}"
        try:
            handle = backbone(spec, **({} if config is None else {"base_config": config}))
            lm = handle.open_language_model(args.device)
        except (FaastError, TypeError) as error:  # a TypeError if base_config does not apply
            raise SystemExit(
                f"{model.name} cannot be opened: {first_line(error)}\nWithout a network give a local copy, "
                f"--model {model.name}=FOLDER (and --base-config), or try --small."
            ) from error
        # The checkpoint's base model is the frozen one, so one set of weights is enough.
        plain = handle if lm.readouts is None else backbone((lm.module, lm.tokenizer))
        _open[key] = Opened(handle, plain, lm)
    return _open[key]


def settings_of(args, model, method, what, shots):
    """Return a handle of the model of a row, and the settings of the estimator that learns on it."""
    one = opened(model, args)
    if method == "paper":
        # Published checkpoints have memories of their own, of which only alpha and weight are set.
        alpha = model.alpha(what, shots) if args.alpha is None else args.alpha
        return one.handle, {**PAPER, "alpha": alpha, "device": args.device}
    return one.plain, {"device": args.device}


def seq2seq(args, model, method, what, shots, **settings):
    """Return the estimator of a row, which has not learnt anything."""
    handle, own = settings_of(args, model, method, what, shots)
    own["verbose"] = int(not args.small and shots == "full")
    if method == "paper":
        own["learn_from"] = "all"
    if method in ("frozen", "in-context"):
        own["memory_weight"] = 0
    return FaastSeq2Seq(handle, **own, **settings)


def learnt_with(method, learnt):
    """Return the figures of a row that say what was learnt with."""
    if method in ("frozen", "in-context"):
        return {}
    return {"alpha": learnt.alpha_, "strength": learnt.memory_weight_}


def memories(method, one):
    """Return how many memories the paper's row has: with the output memory, those of a published checkpoint."""
    if method != "paper":
        return {}
    return {"memories": 1 if one.lm.readouts is None else 1 + len(one.lm.readouts.layer_indices)}


# Sentiment


def sentiment(task, args):
    """Yield the cells of a data set of reviews."""
    for model in models(args, task):
        for method in args.methods:
            for shots in [0] if method == "frozen" else SHOTS[task]:
                if (method, shots) == ("in-context", "full"):
                    continue  # no prompt is that long
                data = "reviews" if args.small else task
                place = {"data": data, "model": model.name, "method": method, "examples per class": shots}
                measure = functools.partial(sentiment_accuracy, args, model, method, task, shots)
                yield Cell(place, measure, published(args, task, model.name, method, shots))


def sentiment_accuracy(args, model, method, task, shots):
    """Return accuracy with its 95 % interval; each draw of few examples is tested on its share of the questions."""
    data = args.data.get(task, NAMES[task])
    X, y, X_test, y_test = reviews(task, args.small, data, sizes(args, task))
    one = opened(model, args)
    rng = np.random.default_rng(SEED)
    few = shots not in (0, "full")
    least = min(np.sum(y == label) for label in LABELS)
    if few and least < shots:
        raise UnavailableError(f"only {least} examples of a class")
    right, taught = 0, []
    # So that, whatever the order of the file, a share is a sample of all questions.
    for part in np.array_split(rng.permutation(len(X_test)), min(args.draws, len(X_test)) if few else 1):
        if few:
            drawn = [rng.choice(np.flatnonzero(y == label), shots, replace=False) for label in LABELS]
            chosen = rng.permutation(np.concatenate(drawn))
        else:
            chosen = np.arange(len(X))
        template = REVIEW
        if method == "in-context":
            template = with_examples(one.lm, X[chosen], y[chosen])
        estimator = seq2seq(args, model, method, task, shots, template=template, choices=LABELS)
        if method in ("frozen", "in-context"):
            chosen = chosen[:1]  # with strength 0 it does not matter what was read
        estimator.fit(X[chosen], y[chosen])
        right += np.sum(estimator.predict(X_test[part]) == y_test[part])
        taught.append(learnt_with(method, estimator))
    share = right / len(X_test)
    return {
        "accuracy, %": float(100 * share),
        "± 95 %": 196 * math.sqrt(share * (1 - share) / len(X_test)),
        "tested on": len(X_test),
        **{name: sum(found[name] for found in taught) / len(taught) for name in taught[0]},
        **memories(method, one),
    }


def with_examples(lm, X, y):
    """Return the template with examples in front, together half of the model's context at most."""
    if lm.limit is not None:
        around = REVIEW.format(source="", target=max(LABELS, key=len)) + "\n"
        most = lm.limit // 2 // len(X) - len(token_ids(lm.tokenizer, around))
        if most < 1:
            raise UnavailableError(f"{len(X)} examples do not fit into {lm.limit} tokens")
        X = [beginning(lm.tokenizer, text, most) for text in X]
    shown = "\n".join(REVIEW.format(source=source, target=target) for source, target in zip(X, y, strict=True))
    return shown.replace("{", "{{").replace("}", "}}") + "\n" + REVIEW


def beginning(tokenizer, text, most):
    """Return the first tokens of a text, as text."""
    ids = token_ids(tokenizer, text)
    return text if len(ids) <= most else tokenizer.decode(ids[:most])


def token_ids(tokenizer, text):
    """Return only the tokens of a text."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@functools.lru_cache
def reviews(task, small, name, size):
    """Return reviews to learn from with what they are, and to test on, as object arrays."""
    if small:
        X, y = neighbour("sentiment").reviews()
        rows = [np.flatnonzero(y == label) for label in LABELS]
        learn = np.concatenate([own[0::2][: size.learn // 2] for own in rows])
        test = np.concatenate([own[1::2][: size.test // 2] for own in rows])
        return X[learn], y[learn], X[test], y[test]
    column, held, words = ("sentence", "validation", 100) if task == "sst2" else ("text", "test", 300)
    found = []
    for split, most in (("train", size.learn), (held, size.test)):
        data = shuffled(load_dataset(name, split=split), most)
        # Of longer texts the paper's code keeps the beginning.
        texts = [" ".join(text.split(" ")[:words]) for text in data[column]]
        found += [np.array(texts, dtype=object), np.array([LABELS[i] for i in data["label"]], dtype=object)]
    return tuple(found)


# Translation


def iwslt(args):
    """Yield the cells of translation: every direction on every model."""
    directions = tuple(args.pairs) or (("en-de",) if args.small else DIRECTIONS)
    for model in models(args, "iwslt"):
        for direction in directions:
            for method in args.methods:
                shots = {"frozen": 0, "in-context": SHOWN}.get(method, "full")
                data = "iwslt"
                if args.small or args.pairs:
                    data = pathlib.PurePath(args.pairs[direction]).name if args.pairs else "grammar"
                place = {"data": data, "direction": direction, "model": model.name, "method": method, "pairs": shots}
                measure = functools.partial(translation_bleu, args, model, method, direction)
                yield Cell(place, measure, published(args, direction, model.name, method, shots))


def translation_bleu(args, model, method, direction):
    """Return BLEU of what is written, up to its first line break, and the likelihood of the references."""
    size = sizes(args, "iwslt")
    X, y, X_test, y_test = pairs(
        direction, args.small, args.pairs.get(direction), args.data.get("iwslt", NAMES["iwslt"]), size
    )
    one = opened(model, args)
    shown = tuple(zip(X[:SHOWN], y[:SHOWN], strict=True)) if method == "in-context" else ()
    chat = bool(getattr(one.lm.tokenizer, "chat_template", None))
    estimator = seq2seq(
        args,
        model,
        method,
        direction,
        "full",
        template=functools.partial(chat_prompt if chat else plain_prompt, direction, shown),
        max_new_tokens=size.new_tokens,
        num_beams=size.num_beams,
    )
    one.lm.module.generation_config.early_stopping = size.num_beams > 1
    n = len(X) if method in ("paper", "ours") else 1  # with strength 0 it does not matter what was read
    estimator.fit(X[:n], y[:n])
    written = [text.strip().split("\n")[0].strip() for text in estimator.predict(X_test)]
    # Whatever was learnt from, only the references are judged.
    scores = estimator.set_params(learn_from="answer").token_scores(X_test, y_test)
    return {
        "BLEU": text_score(written, y_test, "bleu"),
        "NLL per token": scores["nll"],
        "tested on": len(X_test),
        **learnt_with(method, estimator),
        **memories(method, one),
    }


def exchange(direction, source, target=""):
    """Return a source and its translation, or only the beginning of the latter."""
    one, other = (LANGUAGES.get(code, code) for code in direction.split("-"))
    return f"{one}: {source}\n{other}: {target}"


def plain_prompt(direction, shown, source):
    """Return a prompt that ends where the translation begins."""
    return "".join(exchange(direction, *pair) + "\n\n" for pair in shown) + exchange(direction, source)


def chat_prompt(direction, shown, source):
    """Return the messages of a chat that asks for a translation."""
    one, other = (LANGUAGES.get(code, code) for code in direction.split("-"))
    asked = f"Please translate {one} text into {other}.\n\n{plain_prompt(direction, shown, source).rstrip(' ')}"
    return [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": asked}]


@functools.lru_cache
def pairs(direction, small, file, root, size):
    """Return sources and targets to learn from, and to test on."""
    if small or file is not None:
        examples = neighbour("translation")
        found = examples.grammar() if file is None else examples.read_pairs(file)
        n_test = min(max(len(found) // 5, 1), size.test)
        train, test = found[:-n_test][: size.learn], found[-n_test:]
    else:
        one, other = direction.split("-")
        splits = []
        for split, most in (("train", size.learn), ("test", size.test)):
            files = f"{root}/iwslt2017-{direction}/{split}/*.parquet"
            rows = shuffled(load_dataset("parquet", data_files=files, split="train"), most)["translation"]
            splits.append([(row[one], row[other]) for row in rows])
        train, test = splits
    return tuple(list(column) for part in (train, test) for column in zip(*part, strict=True))


# Perplexity


def wikitext(args):
    """Yield the cells of language modelling."""
    for model in models(args, "wikitext"):
        for method in args.methods:
            if method == "in-context":
                continue  # the windows are as long as the context
            shots = 0 if method == "frozen" else "full"
            data = "docstrings" if args.small else "wikitext-103"
            place = {"data": data, "model": model.name, "method": method, "lines": shots}
            measure = functools.partial(perplexity, args, model, method)
            yield Cell(place, measure, published(args, "wikitext", model.name, method, shots))


def perplexity(args, model, method):
    """Return the perplexity a token of text in windows, each read on its own."""
    size = sizes(args, "wikitext")
    train, test = texts(args.small, args.data.get("wikitext", NAMES["wikitext"]), size)
    handle, settings = settings_of(args, model, method, "wikitext", "full")
    lm = FastWeightLM(handle, **settings)
    window = min(size.window, lm.model.limit or size.window)
    if method != "frozen":
        for batch in tqdm(windows(lm.tokenizer, train, window), desc="learn", unit="batch", disable=args.small):
            lm.learn(input_ids=batch)
    total, n_tokens = 0.0, 0
    with torch.inference_mode(), lm.attached() as module:
        for batch in tqdm(windows(lm.tokenizer, test, window), desc="score", unit="batch", disable=args.small):
            ids = batch.to(lm.device)
            logits = module(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="sum").double().item()
            n_tokens += ids[:, 1:].numel()
    figures = {"perplexity": math.exp(total / n_tokens), "tokens": n_tokens}
    if method == "frozen":
        return figures
    chosen = {"alpha": lm.solved().alpha, "strength": lm.solved().memory_weight}
    return {**figures, "tokens learnt": lm.n_tokens, **chosen, **memories(method, opened(model, args))}


def windows(tokenizer, lines, length, batch_size=4):
    """Yield batches of windows of equal length, then the shorter rest alone, from lines joined by empty ones."""
    ids, batch = [], []
    for start in range(0, len(lines), LINES_A_CALL):
        text = "\n\n".join(lines[start : start + LINES_A_CALL])
        ids += token_ids(tokenizer, "\n\n" + text if start else text)
        whole = len(ids) // length * length
        for row in torch.tensor(ids[:whole]).reshape(-1, length):
            batch.append(row)
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
        ids = ids[whole:]
    if batch:
        yield torch.stack(batch)
    if len(ids) > 1:
        yield torch.tensor([ids])


@functools.lru_cache
def texts(small, name, size):
    """Return lines to learn from, and to test on."""
    if small:
        found = docstrings("argparse", "ast", "inspect", "tarfile", "zipfile")
        return [one for i, one in enumerate(found) if i % 4][: size.learn], found[::4][: size.test]
    splits = [load_dataset(name, "wikitext-103-raw-v1", split=split) for split in ("train", "test")]
    return tuple(data[:most]["text"] for data, most in zip(splits, (size.learn, size.test), strict=True))


def docstrings(*modules):
    """Return the docstrings of modules of the standard library, read from their source."""
    found = []
    for name in modules:
        tree = ast.parse(pathlib.Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                found.append(inspect.cleandoc(ast.get_docstring(node) or ""))
    return [text for text in found if text]


# Data


def neighbour(name):
    """Return an example of the folder above, whose data are small enough to bring along."""
    folder = str(pathlib.Path(__file__).resolve().parent.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def shuffled(data, most):
    """Return rows in random order, so many at most."""
    data = data.shuffle(seed=SEED)
    return data.select(range(min(len(data), most)))


TASKS = {
    "sst2": functools.partial(sentiment, "sst2"),
    "imdb": functools.partial(sentiment, "imdb"),
    "wikitext": wikitext,  # on the same model
    "iwslt": iwslt,
}


if __name__ == "__main__":
    main()
