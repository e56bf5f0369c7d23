"""What the estimators share: a frozen backbone that is opened when needed, and statistics that come and go."""

import copy
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from faast_sklearn.backbones import Backbone
from faast_sklearn.backbones.device import resolve_device, resolve_dtype
from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.backbones.identity import same_weights, weight_summary
from faast_sklearn.backbones.layers import with_layers
from faast_sklearn.backbones.views import with_views
from faast_sklearn.errors import FaastError, InputError, SavedFileWarning, shortened
from faast_sklearn.estimators.statistics import FACTS, Statistics
from faast_sklearn.estimators.turns import changing
from faast_sklearn.features.cache import as_cache
from faast_sklearn.features.loop import check_batch_size
from faast_sklearn.features.progress import Report
from faast_sklearn.features.readers import BackboneReader, TableReader
from faast_sklearn.inputs.samples import count_samples

__all__ = ["RUN_PARAMETERS", "FrozenBackboneMixin", "LearningMixin"]

# Parameters that say how to run, not what is learnt.
RUN_PARAMETERS = ("batch_size", "device", "dtype", "cache", "verbose")


class FrozenBackboneMixin:
    """What every estimator with a ``backbone`` parameter shares.

    The estimator keeps what it was given, opens it when there is work, and shares it with its copies: neither
    ``clone`` nor ``copy.deepcopy`` ever copies a module.
    """

    # Parameters that decide what samples are turned into, so that statistics of different values do not add up.
    _decides_statistics: tuple[str, ...] = ("backbone", "dtype", "layers", "views")

    def _reader(self, X, what, facts, *, normalize=False):
        """Return what turns X into rows of features, for one call.

        Parameters
        ----------
        X : samples
            Only to count them, for the progress bar.
        what : str
            In front of the bar.
        facts : dict
            What is known of samples learnt before; empty to begin anew.
        normalize : bool, default=False
            Scale features to unit length.
        """
        # Refused also where there is no backbone to use them.
        as_cache(self.cache)
        check_batch_size(self.batch_size)
        report, name = self._report(X, what), type(self).__name__
        if self.backbone is None:
            return TableReader(name, self.device, self.dtype, facts, normalize=normalize, report=report)
        in_memory = as_handle(self.backbone).module is not None
        how = {"batch_size": self.batch_size, "cache": self.cache, "normalize": normalize}
        opened = self._open_as_saved() if facts else self._open_backbone()
        return BackboneReader(self._to_read(opened), in_memory, name, facts, report=report, **how)

    def _report(self, X, what):
        return Report(verbose=self.verbose, description=what, total=count_samples(X))

    def _facts(self):
        """Return what is known of samples that were learnt, by attribute."""
        return {name: self.__dict__[name] for name in FACTS if name in self.__dict__}

    def _open_backbone(self):
        return as_handle(self.backbone).open(self.device, self.dtype)

    def _to_read(self, opened):
        """Return an open backbone as samples are read through it: with inner layers and views."""
        return with_views(with_layers(opened, self.layers), self.views)

    def _open_as_saved(self):
        """Open the backbone; warn, once, if its weights are not those that a saved file was learnt with."""
        opened = self._open_backbone()
        saved = self.__dict__.get("_saved_backbone")
        if saved is not None and "_compared_backbone" not in self.__dict__:
            self._compared_backbone = True
            found = weight_summary(opened)
            if found is not None and not same_weights(saved, found):
                warnings.warn(
                    f"the weights of this backbone are not those that the {type(self).__name__} was saved with, so its "
                    "answers mean nothing; use the same backbone and revision, or fit again.",
                    SavedFileWarning,
                    stacklevel=4,
                )
        return opened

    def _settings_of_statistics(self):
        return {name: getattr(self, name) for name in self._decides_statistics}

    def _refuse_changes(self, *names):
        """Raise InputError if a parameter is not what it was when something was learnt, by default any of them."""
        before, now = self.__dict__.get("_learnt_with", {}), self._settings_of_statistics()
        for name in names or before:
            if name in before and not self._is_as_before(name, before[name], now[name]):
                raise InputError(
                    f"{name} was {shortened(before[name], 120)} when this {type(self).__name__} learnt and is "
                    f"{shortened(now[name], 120)} now, so that what was learnt does not fit; set it back "
                    "with set_params, or call fit."
                )

    def _is_as_before(self, name, before, now):
        if before is now:
            return True
        if name == "dtype":
            device = resolve_device(self.device)
            return resolve_dtype(before, device) == resolve_dtype(now, device)
        if name != "backbone" or before is None or now is None:
            return before == now
        if as_handle(before) == as_handle(now):
            return True
        there = copy.copy(self)
        there.backbone = before
        try:
            return _computes(self._open_backbone()) == _computes(there._open_backbone())
        except FaastError:
            return False  # one of them is not there any more

    def _reads_rows(self):
        """Whether X may be a plain two-dimensional array: without a backbone, or with a module that takes arrays."""
        # A handle of a named model has no module.
        return self.backbone is None or isinstance(getattr(self.backbone, "module", self.backbone), torch.nn.Module)

    def __sklearn_clone__(self):
        params = {
            name: value if name == "backbone" else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        twin = type(self)(**params)
        for name in ("_metadata_request", "_sklearn_output_config"):
            if name in self.__dict__:
                setattr(twin, name, copy.deepcopy(self.__dict__[name]))
        return twin

    def __getstate__(self):
        # A copy: another thread may publish while this is pickled, and all attributes have to be of one time.
        return dict(super().__getstate__())

    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        memo[id(self)] = twin
        for shared in (self.backbone, self.__dict__.get("_learnt_with", {}).get("backbone")):
            memo[id(shared)] = shared
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class LearningMixin(FrozenBackboneMixin):
    """What the estimators that learn share: all that they know is a sum of statistics, put in place in one step.

    A subclass says how to check its parameters, ``_check_params(partial)``; how samples are read,
    ``_read(X, y, sample_weight, what, facts, stream) -> Statistics``; and what follows from statistics,
    ``_state_of(statistics) -> dict`` of attributes, with the ``_problem`` to be solved when first asked.
    """

    _problem: Any

    def _check_params(self, partial: bool) -> None:
        raise NotImplementedError

    def _read(self, X, y, sample_weight, what: str, facts: dict, stream: bool) -> Statistics:
        raise NotImplementedError

    def _refuse_nothing(self, statistics: Statistics) -> None:
        raise NotImplementedError

    def _state_of(self, statistics: Statistics) -> dict[str, Any]:
        raise NotImplementedError

    def _learn(self, X, y, sample_weight=None, *, reset, partial=False, classes=None):
        """Learn samples, anew or beside all that is known."""
        self._check_params(partial)
        with changing(self):
            known = None if reset or not self.__sklearn_is_fitted__() else self._known(opened=True)
            what = "partial_fit" if partial else "fit"
            learnt = self._read(X, y, sample_weight, what, {} if known is None else known.facts, stream=partial)
            if not partial:  # a stream may begin with samples that teach nothing as well as go on with them
                self._refuse_nothing(learnt)
            learnt = learnt if classes is None else learnt.declaring(classes)
            self._publish(learnt if known is None else known + learnt, anew=known is None)
        return self

    def _unlearn(self, X, y, sample_weight=None):
        """Take samples away that were learnt."""
        check_is_fitted(self)
        self._check_params(partial=True)
        with changing(self):
            known = self._known(opened=True)
            self._publish(known.without(self._read(X, y, sample_weight, "forget", known.facts, stream=True)))
        return self

    def _known(self, *, opened=False):
        """Return all that was learnt, for more to be added to it or taken from it.

        With ``opened`` the backbone is opened first, so that one that cannot be is said to be so.
        """
        if opened and self.backbone is not None:
            self._open_as_saved()
        self._refuse_changes()
        return Statistics(self._problem.moments, self._facts(), self.__dict__.get("_declared", np.array([])))

    def _publish(self, statistics, *, anew=False):
        """Make statistics what is known, as the last step of a change; nothing is solved yet."""
        state = self._state_of(statistics)
        if anew:
            for name in (*FACTS, "_saved_backbone", "_compared_backbone"):
                self.__dict__.pop(name, None)
        self.__dict__.update({**statistics.facts, **state, "_learnt_with": self._settings_of_statistics()})

    def _current(self):
        """Return the problem that predictions follow from."""
        if "_problem" not in self.__dict__:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' or 'partial_fit' first."
            )
        return self._problem

    def _restore_state(self, attributes):
        more = {"device_": "cpu", "_learnt_with": self._settings_of_statistics()}
        super()._restore_state({**attributes, **more})

    def __sklearn_is_fitted__(self):
        return "_problem" in self.__dict__


def _computes(opened):
    """Return a digest of what an open backbone or language model computes."""
    if isinstance(opened, Backbone):
        return opened.fingerprint()
    return fingerprint(opened.module, opened.tokenizer)
