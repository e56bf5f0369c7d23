"""The picture of the README: what happens, and what comes of it. ``python docs/figures/at_a_glance.py`` draws it.

The curves are read from the table of docs/accuracy.md, so that the two cannot differ.
"""

from pathlib import Path

from diagram import BLUE, GREEN, INK, MUTED, ORANGE, Diagram

NAME = "at_a_glance.svg"
DATA = "photographs, EfficientNet"
# A column of the table and what it is called here.
CURVES = (
    ("default", "FaastClassifier()", BLUE),
    ("best-C logistic, last", "logistic regression, best C", GREEN),
    ("SGD probe", "linear probe by SGD", MUTED),
    ("paper", "the paper's setting", ORANGE),
)
FACTS = (
    ("partial_fit", "adds examples, exactly"),
    ("forget", "takes them away, exactly"),
    ("merge", "adds what others learnt"),
    ("predict", "one pass, one product"),
)
STEPS = (
    (("a few labelled", "images or texts"), MUTED),
    (("frozen model", "one forward pass"), BLUE),
    (("sums", "a few MB, no rows"), BLUE),
    (("one solve", "milliseconds"), ORANGE),
    (("predictions", "calibrated"), GREEN),
)
WIDTH, STEP, HEAD = 880, 148, 82
CHART = (74, 168, 420, 250)  # left, top, width, height
LEAST, MOST = 20, 90  # percent


def table():
    """Return the accuracies of the data set, a dict of columns to lists, and the shots of each row."""
    page = (Path(__file__).parent.parent / "accuracy.md").read_text(encoding="utf-8")
    lines = page[page.index(f"\n{DATA}:") :].split("\n\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = {name: [float(row[i].split(" /")[0]) for row in rows[2:]] for i, name in enumerate(rows[0]) if i}
    return columns, [row[0] for row in rows[2:]]


def draw():
    """Return the picture."""
    columns, shots = table()
    ours, best, probe, paper = (columns[name] for name, _, _ in CURVES)
    at = shots.index("64")
    figure = Diagram(
        WIDTH,
        HEAD + 390,
        "faast_sklearn at a glance",
        "Above, what happens: a few labelled images or texts go once through a frozen model; sums of its features are "
        "kept; one solve gives fast weights; these predict. Below, accuracy against examples per class, on ten kinds "
        f"of photographs through EfficientNet-Lite0: at 64 examples {ours[at]} percent with FaastClassifier, "
        f"{best[at]} with logistic regression, {probe[at]} with a linear probe, {paper[at]} with the paper's setting.",
    )
    gap = (WIDTH - 48 - STEP * len(STEPS)) / (len(STEPS) - 1)
    for i, ((first, second), colour) in enumerate(STEPS):
        x = 24 + i * (STEP + gap)
        figure.box(x, 24, STEP, 66, colour)
        figure.text(x + STEP / 2, 51, first, size=16, weight=700, colour=colour, anchor="middle")
        figure.text(x + STEP / 2, 75, second, size=14, colour=INK, anchor="middle")
        if i:
            figure.arrow([(x - gap + 3, 57), (x - 3, 57)], INK)
    chart(figure, columns, shots)
    words(figure, columns, at)
    return figure


def chart(figure, columns, shots):
    """Draw accuracy against the number of examples."""
    left, top, width, height = CHART
    across = [left + 16 + i * (width - 32) / (len(shots) - 1) for i in range(len(shots))]

    def up(percent):
        return round(top + height * (MOST - percent) / (MOST - LEAST), 1)

    figure.text(left - 50, top - 24, "accuracy, ten kinds of photographs", size=16, weight=700)
    for percent in range(LEAST, MOST + 1, 10):
        figure.line([(left, up(percent)), (left + width, up(percent))], "#d9dee3", 1)
        figure.text(left - 10, up(percent) + 5, f"{percent} %", size=13, colour=MUTED, anchor="end")
    for x, label in zip(across, shots, strict=True):
        figure.text(x, top + height + 22, label, size=13, colour=MUTED, anchor="middle")
    figure.text(left + width / 2, top + height + 44, "examples per class", size=14, colour=MUTED, anchor="middle")
    for name, _, colour in reversed(CURVES):
        points = [(round(x, 1), up(value)) for x, value in zip(across, columns[name], strict=True)]
        figure.line(points, colour, 4 if name == "default" else 2, dots=True)


def words(figure, columns, at):
    """Name the curves, and say what else there is."""
    left, top = 536, CHART[1]
    figure.text(WIDTH - 24, top - 24, "at 64 per class", size=13, colour=MUTED, anchor="end")
    for i, (name, meant, colour) in enumerate(CURVES):
        y = top + 4 + 28 * i
        figure.line([(left, y - 5), (left + 24, y - 5)], colour, 4 if name == "default" else 2)
        weight = 700 if name == "default" else 400
        figure.text(left + 34, y, meant, size=15, weight=weight)
        figure.text(WIDTH - 24, y, f"{columns[name][at]:.1f} %", size=15, weight=weight, anchor="end")
    for i, (name, meant) in enumerate(FACTS):
        y = top + 152 + 30 * i
        figure.text(left, y, name, size=14, weight=700, colour=BLUE, family="monospace")
        figure.text(left + 100, y, meant, size=14)


if __name__ == "__main__":
    draw().save(NAME)
