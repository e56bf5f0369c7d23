"""The flow chart of the page "Choosing a backbone": ``python docs/figures/choosing_a_backbone.py`` draws it."""

from diagram import BLUE, GREEN, INK, MUTED, PURPLE, Diagram

NAME = "choosing_a_backbone.svg"
# A question, its answers, and the model that each leads to, from the first thing to know to the last.
CHOICES = (
    (
        "Features already?",
        BLUE,
        (("yes", "backbone=None", "X is a table of numbers (n, d)"),),
    ),
    (
        "Images?",
        GREEN,
        (
            ("no network, or a small CPU", "bundled:efficientnet-lite0", "d = 1,280, 19 MB"),
            ("compute to spare", "timm:vit_small_patch14_dinov2.lvd142m", "d = 384, 88 MB"),
            (
                "few examples, and names that say what to look for",
                "hf:google/siglip-base-patch16-224",
                'd = 768, 813 MB, values="text"',
            ),
        ),
    ),
    (
        "Texts, to classify?",
        PURPLE,
        (
            ("English; no network, or a small CPU", "bundled:minilm-l6", "d = 384, 92 MB"),
            ("English, compute to spare", "hf:BAAI/bge-small-en-v1.5", "d = 384, 133 MB"),
            ("other languages", "hf:intfloat/multilingual-e5-small", "d = 384, 471 MB"),
        ),
    ),
    (
        "Texts, to write?",
        BLUE,
        (
            ("no network, or a small CPU", "bundled:smollm2-135m", "FaastSeq2Seq, 98 MB"),
            ("compute to spare", "hf:Qwen/Qwen2.5-0.5B-Instruct", "FaastSeq2Seq, 988 MB"),
        ),
    ),
)
LEFT, WIDTH, ROW, HEAD, GAP, TOP = 24, 612, 78, 52, 34, 24
INDENT = 64


def draw():
    """Return the diagram."""
    height = TOP + sum(HEAD + ROW * len(answers) for _, _, answers in CHOICES) + GAP * (len(CHOICES) - 1) + 16
    figure = Diagram(
        LEFT * 2 + WIDTH,
        height,
        "Flow chart: choosing a backbone",
        " ".join(
            f"{question.rstrip('?')}: " + "; ".join(f"{when}: {name}, {facts}" for when, name, facts in answers) + "."
            for question, _, answers in CHOICES
        ),
    )
    y = TOP
    for i, (question, colour, answers) in enumerate(CHOICES):
        figure.box(LEFT, y, 250, HEAD, colour, radius=8)
        figure.text(LEFT + 125, y + 33, question, size=19, weight=700, colour=colour, anchor="middle")
        end = y + HEAD + ROW * len(answers)
        for j, (when, name, facts) in enumerate(answers):
            top = y + HEAD + j * ROW + 26
            figure.arrow([(LEFT + 26, y + HEAD), (LEFT + 26, top + 26), (LEFT + INDENT, top + 26)], colour)
            figure.text(LEFT + INDENT, top - 7, when, size=16, colour=INK)
            figure.box(LEFT + INDENT, top, WIDTH - INDENT, 42, colour, radius=6)
            figure.text(LEFT + INDENT + 12, top + 18, name, size=15, weight=700, colour=colour, family="monospace")
            figure.text(LEFT + INDENT + 12, top + 35, facts, size=14, colour=MUTED)
        if i + 1 < len(CHOICES):
            # What is none of the above goes on to the next question.
            figure.arrow([(LEFT + 10, y + HEAD), (LEFT + 10, end + GAP)], MUTED)
            figure.text(LEFT + 22, end + GAP - 8, "no", size=16, colour=MUTED)
        y = end + GAP
    return figure


if __name__ == "__main__":
    draw().save(NAME)
