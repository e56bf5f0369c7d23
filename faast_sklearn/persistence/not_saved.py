"""What stands where moments were that a file does not hold."""

from faast_sklearn.errors import SavedFileError

__all__ = ["NotSaved"]


class NotSaved:
    """In place of moments: whatever needs them says that they were not saved.

    Parameters
    ----------
    n_samples : int
        How many were learnt.
    """

    def __init__(self, n_samples):
        self.n_samples = n_samples

    def refuse(self, *_):
        """Raise the error that says so."""
        raise SavedFileError(
            "this estimator was saved with moments=False: it predicts, but it cannot learn more, forget, be merged, or "
            "tell what is new. Save it with its moments for that."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = refuse

    def __getattr__(self, name):
        if name.startswith("__") or name == "n_samples":
            raise AttributeError(name)
        return self.refuse()

    def __repr__(self):
        return f"NotSaved(n_samples={self.n_samples})"
