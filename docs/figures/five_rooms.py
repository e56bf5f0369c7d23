"""The picture of the five rooms on the page "How it works": ``python docs/figures/five_rooms.py`` draws it."""

from diagram import BLUE, GREEN, INK, MUTED, ORANGE, Diagram

NAME = "five_rooms.svg"
# Room, files, what it does, and what goes on to the next one.
ROOMS = (
    ("inputs", "inputs/", "what users pass becomes samples", "samples", BLUE),
    (
        "features",
        "features/  backbones/",
        "a frozen model reads each once",
        "N rows of d numbers",
        BLUE,
    ),
    ("moments", "moments/", "sums, all that is kept of the rows", "scatter T; counts, class means", BLUE),
    ("solve", "solvers/", "one linear system, alpha chosen", "fast weights W", ORANGE),
    ("readout", "readout/", "scores, probabilities, labels", None, GREEN),
)
LEFT, WIDTH, TALL, GAP, TOP = 52, 520, 84, 42, 24
LANE = LEFT + WIDTH + 44


def draw():
    """Return the diagram."""
    bottom = TOP + len(ROOMS) * (TALL + GAP) - GAP
    figure = Diagram(
        668,
        bottom + 24,
        "The five rooms of faast_sklearn",
        "Data flow one way: inputs, features, moments, solve, readout. fit and partial_fit go as far as the moments; "
        "the first prediction solves, once; every prediction goes from features straight to readout. partial_fit and "
        "merge add moments, forget subtracts them.",
    )
    for i, (room, files, does, passes, colour) in enumerate(ROOMS):
        y = TOP + i * (TALL + GAP)
        figure.box(LEFT, y, WIDTH, TALL, colour)
        figure.text(LEFT + 16, y + 36, room, size=22, weight=700, colour=colour)
        figure.text(LEFT + 150, y + 36, does, size=17)
        figure.text(LEFT + 150, y + 63, files, size=14, colour=MUTED, family="monospace")
        if passes is not None:
            figure.arrow([(LEFT + 80, y + TALL), (LEFT + 80, y + TALL + GAP)], INK)
            figure.text(LEFT + 96, y + TALL + GAP / 2 + 6, passes, size=16, colour=INK)

    # Paths: fit on the left, the solve after it, and past both that of a prediction.
    first, third, fourth, last = (TOP + i * (TALL + GAP) for i in (0, 2, 3, 4))
    figure.arrow([(34, first + 4), (34, third + TALL - 4)], BLUE)
    figure.text(
        10, (first + third + TALL) / 2, "fit, partial_fit", colour=BLUE, weight=700, anchor="middle", turned=True
    )
    figure.arrow([(34, fourth + 4), (34, fourth + TALL - 4)], ORANGE)
    figure.text(10, fourth + TALL / 2, "once", colour=ORANGE, weight=700, anchor="middle", turned=True)
    second = TOP + TALL + GAP
    right = LEFT + WIDTH
    figure.arrow(
        [(right, second + TALL / 2), (LANE, second + TALL / 2), (LANE, last + TALL / 2), (right, last + TALL / 2)],
        GREEN,
    )
    figure.text(
        LANE + 10,
        (second + last + TALL) / 2,
        "predict, for new samples",
        colour=GREEN,
        weight=700,
        anchor="middle",
        turned=True,
    )
    # Moments form a group; the names of its two operations.
    figure.text(right - 78, third - 14, "+ partial_fit, merge", size=15, weight=700, colour=BLUE, anchor="end")
    figure.text(right, third - 14, "– forget", size=15, weight=700, colour=BLUE, anchor="end")  # noqa: RUF001
    return figure


if __name__ == "__main__":
    draw().save(NAME)
