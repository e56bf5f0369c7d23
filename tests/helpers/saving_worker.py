"""What a process does that is killed while it saves; apart from the tests, so that it starts without their imports."""

from faast_sklearn import load, save


def save_for_ever(old, new, target, started):
    """Write two estimators over one another until the process is killed."""
    estimators = [load(new), load(old)]
    started.set()
    while True:
        for estimator in estimators:
            save(estimator, target)
