"""What every pass of a language model over exchanges shares, so that the one loop over data can drive it."""

from faast_sklearn.backbones.base import Backbone

__all__ = ["Runner"]


class Runner(Backbone):
    """Runs an opened language model over :class:`~faast_sklearn.language.exchanges.Exchange` samples.

    Parameters
    ----------
    lm : LanguageModel
        Whatever hooks its module has are active.
    """

    modality = "text"
    n_features = None

    def __init__(self, lm):
        self.lm = lm
        self.module, self.device, self.dtype = lm.module, lm.device, lm.dtype
        self.default_batch_size = lm.default_batch_size

    @property
    def shares_memory_with(self):
        """The module, whichever pass runs it: what fitted into memory once is remembered for it."""
        return self.module

    def load(self, sample):
        """Return the exchange itself."""
        return sample

    def sort_key(self, item):
        """Tokens of the exchange."""
        return len(item.prompt) + len(item.answer)
