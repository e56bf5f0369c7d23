"""What all estimators share: they open a frozen backbone when it is needed, and they add and subtract statistics."""

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

# Parameters that decide how an estimator runs, but not what it learns.
RUN_PARAMETERS = ("batch_size", "device", "dtype", "cache", "verbose")


class FrozenBackboneMixin:
    """Base of every estimator with a ``backbone`` parameter.

    The estimator keeps the parameter as it was given and opens the backbone when it is needed. Copies share the
    backbone: neither ``clone`` nor ``copy.deepcopy`` copies a module.
    """

    # Parameters that determine the features: statistics learnt with different values cannot be added.
    _decides_statistics: tuple[str, ...] = ("backbone", "dtype", "layers", "views")

    def _reader(self, X, what, facts, *, normalize=False):
        """Return the reader that turns samples into rows of features, for one call.

        Parameters
        ----------
        X : samples
            The progress bar needs their number; nothing is read.
        what : str
            Text in front of the progress bar.
        facts : dict
            Facts about the samples learnt before; empty for a new start.
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
        """Return the facts about the samples learnt, as a dict from attribute names to values."""
        return {name: self.__dict__[name] for name in FACTS if name in self.__dict__}

    def _open_backbone(self):
        return as_handle(self.backbone).open(self.device, self.dtype)

    def _to_read(self, opened):
        """Return the open backbone with the inner layers and views that the parameters ask for."""
        return with_views(with_layers(opened, self.layers), self.views)

    def _open_as_saved(self):
        """Open the backbone; warn once if its weights differ from those that the saved estimator learnt with."""
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
        """Raise InputError if one of the named parameters (by default, any) has changed since samples were learnt."""
        before, now = self.__dict__.get("_learnt_with", {}), self._settings_of_statistics()
        for name in names or before:
            if name in before and not self._is_as_before(name, before[name], now[name]):
                raise InputError(
                    f"{name} was {shortened(before[name], 120)} when this {type(self).__name__} learnt and is "
                    f"{shortened(now[name], 120)} now, so the statistics learnt before do not match it; set it back "
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
            return False  # one of the two can no longer be opened

    def _reads_rows(self):
        """Whether X may be a two-dimensional array: there is no backbone, or it is a module that takes arrays."""
        # The handle of a named model has no attribute ``module``.
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
        # A copy, because another thread may publish during pickling, and all attributes must be from one state.
        return dict(super().__getstate__())

    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        memo[id(self)] = twin
        for shared in (self.backbone, self.__dict__.get("_learnt_with", {}).get("backbone")):
            memo[id(shared)] = shared
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class LearningMixin(FrozenBackboneMixin):
    """Base of the estimators that learn: all that they keep is a sum of statistics, which a change replaces at once.

    A subclass defines four methods. ``_check_params(partial)`` checks the parameters.
    ``_read(X, y, sample_weight, what, facts, stream)`` returns the ``Statistics`` of samples.
    ``_refuse_nothing(statistics)`` raises InputError if ``fit`` has nothing to learn from.
    ``_state_of(statistics)`` returns a dict of attributes; among them is the ``_problem``, which is solved on first
    access.
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
        """Add the statistics of samples to those learnt before, or with ``reset`` replace these."""
        self._check_params(partial)
        with changing(self):
            known = None if reset or not self.__sklearn_is_fitted__() else self._known(opened=True)
            what = "partial_fit" if partial else "fit"
            learnt = self._read(X, y, sample_weight, what, {} if known is None else known.facts, stream=partial)
            if not partial:  # one batch of a stream may have only samples of weight zero
                self._refuse_nothing(learnt)
            learnt = learnt if classes is None else learnt.declaring(classes)
            self._publish(learnt if known is None else known + learnt, anew=known is None)
        return self

    def _unlearn(self, X, y, sample_weight=None):
        """Subtract the statistics of samples that were learnt before."""
        check_is_fitted(self)
        self._check_params(partial=True)
        with changing(self):
            known = self._known(opened=True)
            self._publish(known.without(self._read(X, y, sample_weight, "forget", known.facts, stream=True)))
        return self

    def _known(self, *, opened=False):
        """Return the statistics of everything learnt, to which others can be added or from which they are subtracted.

        With ``opened``, the backbone is opened first, so that a backbone that cannot be opened raises its own error.
        """
        if opened and self.backbone is not None:
            self._open_as_saved()
        self._refuse_changes()
        return Statistics(self._problem.moments, self._facts(), self.__dict__.get("_declared", np.array([])))

    def _publish(self, statistics, *, anew=False):
        """Replace what is known by ``statistics``, as the last step of a change; nothing is solved yet.

        With ``anew``, facts about the samples learnt before are deleted.
        """
        state = self._state_of(statistics)
        if anew:
            for name in (*FACTS, "_saved_backbone", "_compared_backbone"):
                self.__dict__.pop(name, None)
        self.__dict__.update({**statistics.facts, **state, "_learnt_with": self._settings_of_statistics()})

    def _current(self):
        """Return the problem whose solution gives the predictions; raise NotFittedError if nothing was learnt."""
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
