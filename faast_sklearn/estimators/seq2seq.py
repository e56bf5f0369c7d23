"""FaastSeq2Seq: a frozen language model that learns a task from pairs of texts, in one forward pass."""

import copy
import functools
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.errors import FaastError, InputError, NotFittedWarning
from faast_sklearn.estimators.base import LearningMixin
from faast_sklearn.estimators.statistics import Statistics
from faast_sklearn.estimators.turns import changing
from faast_sklearn.features.loop import stream_features
from faast_sklearn.features.readers import in_order
from faast_sklearn.inputs.samples import as_samples
from faast_sklearn.language.choices import ChoicePass, ChoiceScorer, checked_choices, choice_tree, refuse_other_targets
from faast_sklearn.language.export import save_folded
from faast_sklearn.language.fast_weight_lm import FastWeightLM
from faast_sklearn.language.generation import Generator
from faast_sklearn.language.passes import LearningPass, LikelihoodPass
from faast_sklearn.language.problem import WeightProblem, check_settings
from faast_sklearn.language.prompts import Prompts, targets_of
from faast_sklearn.language.scoring import TEXT_SCORINGS, text_score
from faast_sklearn.persistence.fields import Integer
from faast_sklearn.persistence.not_saved import NotSaved
from faast_sklearn.persistence.saving import Persistent

__all__ = ["FaastSeq2Seq"]

_SCORINGS = (*TEXT_SCORINGS, "negative_perplexity")


class FaastSeq2Seq(LearningMixin, Persistent, BaseEstimator):
    """Language model that learns a text-to-text task in one forward pass, without gradients.

    The frozen model reads each prompt with its answer once. Statistics of its hidden states and of the tokens that
    came next are added up; one solve turns them into fast weights, which change the model's output. ``partial_fit``
    adds statistics, with the same result for any split, and ``forget`` subtracts them again.

    With ``target="residual"``, fast weights are one Newton-like step on the negative log-likelihood of the answers,
    and a shift, a bias over the vocabulary. Held-out tokens choose the strength of both. Both fold into the output
    matrix, where they cost nothing (:meth:`save_folded`). ``target="embedding"`` is the output memory of
    Bao et al. [1]_: ``h ← (1 − r) h + r h W`` in front of the final norm, ``W = pinv(K) V`` with V the embeddings of
    the tokens that came next; their settings are ``solver="pinv", memory_weight=0.9``.

    Parameters
    ----------
    backbone : str, path, handle or (transformers model, tokenizer)
        ``"hf:NAME_OR_PATH"``, ``"bundled:smollm2-135m"``, a local folder or GGUF file, or a model in memory: any
        decoder or encoder-decoder language model of transformers. It is opened once per process and never changed.
        Published FAAST checkpoints have memories of their own: ``target`` and ``solver`` do not apply to them,
        ``memory_weight="auto"`` is 0.9, and ``alpha="auto"`` is the value in the checkpoint.
    target : {"residual", "embedding"}, default="residual"
        What fast weights map hidden states to.
    solver : {"ridge", "pinv"}, default="ridge"
        Spectral filter of the keys.
    alpha : "auto" or float, default="auto"
        Strength of the filter: relative to the mean eigenvalue for "ridge", exponent of ``N ** -alpha`` for "pinv".
        "auto" is chosen on held-out tokens (residual) or by generalised cross-validation (embedding).
    memory_weight : "auto" or float, default="auto"
        Strength of the fast weights; 0 is the frozen model. "auto" minimises the negative log-likelihood of held-out
        tokens (at most 1,024 of the kept ones) and is 0 unless the fast weights beat the frozen model by two standard
        errors (with ``choices``, unless they beat it).
    max_iter : int, default=20
        Most closed-form steps. The first is of all learnt tokens; further ones follow if ``memory_weight`` is "auto",
        ``target`` "residual" and ``solver`` "ridge", there are no ``choices``, and held-out tokens gain. They need the
        hidden states of learnt tokens, of which at most 32,768 are kept, and no pass of the network.
    learn_from : {"answer", "all"}, default="answer"
        Whether the tokens of prompts are learnt too. Encoder-decoders learn answers only.
    template : None, str or callable, default=None
        How source and target become a prompt and its answer. ``None``: the tokenizer's chat template, or a line each
        if it has none; unchanged for encoder-decoders. A format string has ``{source}`` and ``{target}``; a callable
        gets the source and returns the prompt or a list of chat messages.
    choices : sequence of str, default=None
        Predict the most likely of these strings instead of generating; each may have any number of tokens. Targets
        have to be among them, and ``score`` is then the accuracy. With ``target="residual"`` only the tokens at which
        choices part are learnt: a discriminant, as in :class:`FaastClassifier`, is added to the frozen model's logits.
    max_new_tokens : int, default=64
        Maximum number of tokens of a generated answer.
    num_beams : int, default=1
        1 is greedy generation. For other options of ``generate``, call it on the model that :meth:`attached` yields.
    scoring : {"bleu", "chrf", "exact_match", "negative_perplexity"}, default="bleu"
        What :meth:`score` returns; BLEU and chrF are computed by sacrebleu, from 0 to 100.
    batch_size : int or "auto", default="auto"
        Samples per pass; halved when memory is short.
    device : None, "auto", str or torch.device, default=None
        By default the best device available.
    dtype : "auto", str or torch.dtype, default="auto"
        Of the model. "auto": bfloat16 on GPUs that support it, float32 elsewhere. Statistics are always float64.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    moments_ : LanguageMoments
        Statistics of everything learnt; their size does not grow with the data.
    alpha_, memory_weight_, shift_weight_ : float
        The regulariser of the first step, its strength, and that of the shift; after :meth:`refine`, those of the last
        step. With ``choices``, the strengths of the discriminant and of the frozen model without its usual preference.
    condition_ : float or None
        Condition number of the solve for the keys of the output matrix, see ``FaastClassifier.condition_``; None if
        nothing was solved.
    held_out_loss_ : float or None
        Negative log-likelihood per held-out token, natural logarithm; None if nothing was held out.
    n_samples_seen_, n_tokens_seen_ : int
        Samples and tokens learnt and not forgotten.
    device_ : str
        Where the model runs.

    Notes
    -----
    Learning costs a forward pass, two products of the learnt tokens with the output matrix, and O(d²) per token.
    Statistics take ``32 d² + 24 V`` bytes for a vocabulary of V tokens; with choices 8 d², and as many for each place
    at which choices part if there are several. Kept states take ``4 d`` bytes per token in float32, at most 75 MB at
    d = 576. The solve costs O(d³ + V d²), a few passes of the held-out tokens through the output matrix, and for each
    further step a pass of the kept tokens through the rows of 4,096 tokens; it runs at the first prediction after a
    change.

    References
    ----------
    .. [1] Bao et al., "Forward-Only Associative Learning via Closed-Form Fast Weights for Test-Time Supervised
       Adaptation", arXiv 2605.04651, 2026, section 3.

    Examples
    --------
    >>> from faast_sklearn import FaastSeq2Seq
    >>> seq2seq = FaastSeq2Seq("bundled:smollm2-135m", choices=["good", "bad"])
    >>> seq2seq.fit(["I love it", "It broke at once"], ["good", "bad"])  # doctest: +SKIP
    >>> seq2seq.predict(["What a waste"])  # doctest: +SKIP
    array(['bad'], dtype=object)
    """

    # What files hold; devices and modules never go in.
    _saved_state: ClassVar = {
        "_problem": WeightProblem.record(),
        "n_samples_seen_": Integer(),
        "n_tokens_seen_": Integer(),
    }
    _decides_statistics = ("backbone", "dtype", "target", "learn_from", "template")

    def __init__(
        self,
        backbone: Any,
        *,
        target: Literal["residual", "embedding"] = "residual",
        solver: Literal["ridge", "pinv"] = "ridge",
        alpha: Literal["auto"] | float = "auto",
        memory_weight: Literal["auto"] | float = "auto",
        max_iter: int = 20,
        learn_from: Literal["answer", "all"] = "answer",
        template: str | Callable[..., Any] | None = None,
        choices: Sequence | None = None,
        max_new_tokens: int = 64,
        num_beams: int = 1,
        scoring: Literal["bleu", "chrf", "exact_match", "negative_perplexity"] = "bleu",
        batch_size: int | Literal["auto"] = "auto",
        device: Any = None,
        dtype: Any = "auto",
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.target = target
        self.solver = solver
        self.alpha = alpha
        self.memory_weight = memory_weight
        self.max_iter = max_iter
        self.learn_from = learn_from
        self.template = template
        self.choices = choices
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self.scoring = scoring
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "FaastSeq2Seq":
        """Forget everything and learn from texts.

        Parameters
        ----------
        X : sequence of n str
            Sources; or plain texts, of which every token after the first is learnt.
        y : sequence of n str, default=None
            Targets; None for plain text.

        Returns
        -------
        FaastSeq2Seq
            Itself.

        Raises
        ------
        InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
            See :mod:`faast_sklearn.errors`. The estimator is then as it was before the call.
        """
        return self._learn(X, y, reset=True)

    def partial_fit(self, X: Any, y: Any = None) -> "FaastSeq2Seq":
        """Learn more texts, with the same result as learning all at once.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.

        Returns
        -------
        FaastSeq2Seq
            Itself.

        Raises
        ------
        InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
            The estimator is then as it was before the call.
        """
        return self._learn(X, y, reset=False, partial=True)

    def forget(self, X: Any, y: Any = None) -> "FaastSeq2Seq":
        """Forget texts that were learnt before, as if they had never been learnt.

        Parameters
        ----------
        X, y
            As they were learnt.

        Returns
        -------
        FaastSeq2Seq
            Itself.

        Raises
        ------
        ForgetError
            If more is to be forgotten than was learnt, or texts that were never learnt.
        InputError, NonFiniteError
            As in :meth:`fit`. The estimator is then as it was before the call.
        """
        return self._unlearn(X, y)

    def refine(self, X: Any, y: Any = None) -> "FaastSeq2Seq":
        """Read the same texts again, and take one more step from the present fast weights.

        Each call costs a pass and lowers the loss further, each time by less. Then no text can be added or forgotten,
        since statistics taken at different weights do not add up; ``fit`` starts anew.

        Parameters
        ----------
        X, y
            All that was learnt, as it was learnt, in any order.

        Returns
        -------
        FaastSeq2Seq
            Itself.

        Raises
        ------
        ValueError
            If ``target`` is not "residual", or the model is a published checkpoint: neither has a loss to step on. If
            there are ``choices``, which are learnt in a single step.
        InputError
            If these are not the texts that were learnt. The estimator is then as it was before the call.
        """
        check_is_fitted(self)
        self._check_params()
        with changing(self):
            lm = self._fast_weight_lm()
            self._refuse_changes()
            if lm.target != "residual":
                raise ValueError(
                    "refine takes further steps on the loss, which needs target='residual' and a model without "
                    "memories of its own."
                )
            before = self._current()
            if before.settings["among"] is not None:
                raise ValueError("refine takes further steps on the loss, and choices are learnt in a single step.")
            # The tokens that choose the strength of this step were not used in an earlier step.
            first = lm.problem_of(before.moments, base=before.settings["base"], hold_out=True)
            base = first.solved(lm.model).weights
            moments = self._moments_of(lm, self._exchanges(lm.model, X, y), "refine", base)
            if not moments.same_texts(before.moments):
                raise InputError(
                    f"refine needs the {before.moments.n_samples} samples that were learnt, but these are other texts; "
                    "add texts with partial_fit first."
                )
            self.__dict__.update(self._state_of_problem(lm.problem_of(moments, base=base)))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Write an answer to each source, or choose the most likely of ``choices``.

        Parameters
        ----------
        X : sequence of n str

        Returns
        -------
        ndarray of shape (n,), object
            Strings. If nothing was learnt they are the frozen model's, with a NotFittedWarning.
        """
        if self.choices is not None:
            scores, choices = self._choice_scores(X)
            return _strings(choices)[scores.argmax(1)]
        self._check_params()
        lm = self._fast_weight_lm()
        prompts = Prompts(lm.model, self.template)
        writing = Generator(
            lm.model, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, stop_ids=prompts.stop_ids
        )
        questions = prompts.questions(X, room=writing.room)
        with self._told_if_frozen(lm).attached(private=True):
            return in_order(self._stream(writing, questions, "predict"), len(questions))

    def choice_log_probabilities(self, X: Any) -> np.ndarray:
        """Return the log-probability of each of ``choices`` as the whole answer to each source.

        Parameters
        ----------
        X : sequence of n str

        Returns
        -------
        ndarray of shape (n, len(choices))
            Natural logarithms. Wherever choices part, the model's probabilities of the next tokens are renormalised to
            those of the choices; so the probabilities of the choices sum to one, whatever their lengths.
        """
        if self.choices is None:
            raise ValueError("choices is None; pass choices=[...] to the constructor.")
        return self._choice_scores(X)[0]

    def score(self, X: Any, y: Any = None) -> float:
        """Score predictions against targets; greater is better.

        Parameters
        ----------
        X : sequence of n str
        y : sequence of n str, default=None
            May be None with ``scoring="negative_perplexity"``, for plain text.

        Returns
        -------
        float
            The accuracy with ``choices``, else what ``scoring`` says.
        """
        self._check_params()
        if self.choices is None and self.scoring == "negative_perplexity":
            return -self.perplexity(X, y)
        if y is None:
            raise InputError("y is None; only scoring='negative_perplexity' scores plain text.")
        X, y = as_samples(X, "text"), targets_of(y)
        if len(X) != len(y):
            raise InputError(f"X has {len(X)} samples and y has {len(y)}; pass one target for each.")
        if self.choices is None:
            return text_score(list(self.predict(X)), list(y), self.scoring)
        refuse_other_targets(y, self.choices)
        return float(np.mean([a == b for a, b in zip(self.predict(X), y, strict=True)]))

    def perplexity(self, X: Any, y: Any = None) -> float:
        """Return the perplexity per token of answers, or of plain texts; smaller is better.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.

        Returns
        -------
        float
            ``exp`` of the mean negative log-likelihood of the tokens that ``learn_from`` names.
        """
        total, tokens, _ = self._likelihood(X, y)
        return float(np.exp(-total / tokens))

    def token_scores(self, X: Any, y: Any = None) -> dict:
        """Return the mean loss and the accuracy per token of given answers, or of plain texts.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.

        Returns
        -------
        dict
            ``"nll"``: mean negative log-likelihood per token, natural logarithm; ``"accuracy"``: share of tokens that
            are the most likely one; ``"n_tokens"``.
        """
        total, tokens, correct = self._likelihood(X, y)
        return {"nll": float(-total / tokens), "accuracy": float(correct / tokens), "n_tokens": int(tokens)}

    @contextmanager
    def attached(self) -> Iterator[Any]:
        """Attach the fast weights to the transformers model for the time of a block, and yield the model.

        Yields
        ------
        transformers.PreTrainedModel
            For ``generate``, pipelines and evaluation. Within the block, every pass of the model in every thread has
            these fast weights; this library's estimators use their own. With ``memory_weight=0`` the output is the
            frozen model's, bit for bit. Code from ``torch.compile`` runs uncompiled, also where ``generate`` compiles
            by itself (static caches). A thread that generates has to end within the block. Afterwards, also after an
            exception, the model is the frozen one again.
        """
        with self._told_if_frozen(self._fast_weight_lm()).attached() as module:
            yield module

    def save_folded(self, folder: str | os.PathLike) -> None:
        """Write a plain transformers checkpoint, model and tokenizer, with the fast weights in its output matrix.

        Parameters
        ----------
        folder : str or path
            For ``AutoModelForCausalLM.from_pretrained`` (or ``AutoModelForSeq2SeqLM``), which needs no code of this
            library. Its logits are those with the fast weights attached.

        Raises
        ------
        BackboneError
            If the fast weights cannot be folded (``target="embedding"``, published checkpoints), or logits differ.
        """
        lm = self._open_as_saved()
        save_folded(lm, self._current().solved(lm).weights, folder)

    @property
    def alpha_(self) -> float:
        """The regulariser that was used."""
        return self._solution().alpha

    @property
    def condition_(self) -> float | None:
        """Condition number of the solve for the keys; None if nothing was solved."""
        return self._solution().condition

    @property
    def memory_weight_(self) -> float:
        """The strength of the fast weights."""
        return self._solution().memory_weight

    @property
    def shift_weight_(self) -> float:
        """The strength of the vocabulary's shift."""
        return self._solution().shift_weight

    @property
    def n_iter_(self) -> int:
        """Number of closed-form steps that gave the fast weights."""
        return self._solution().n_iter

    @property
    def held_out_loss_(self) -> float | None:
        """Negative log-likelihood per held-out token; None if nothing was held out."""
        return self._solution().held_out_loss

    def _open_backbone(self):
        return as_handle(self.backbone).open_language_model(self.device, self.dtype)

    def _fast_weight_lm(self):
        """Return the open model with what was learnt, if anything."""
        lm = self._frozen_lm(self._open_as_saved())
        Prompts(lm.model, self.template)  # errors of these parameters come before those of a change
        if self.__sklearn_is_fitted__():
            lm.problem = self._current()
        return lm

    def _frozen_lm(self, opened):
        return FastWeightLM(opened, target=self.target, **self._solve_settings())

    def _solve_settings(self):
        return {name: getattr(self, name) for name in ("solver", "alpha", "memory_weight", "max_iter")}

    def _told_if_frozen(self, lm):
        """Return ``lm``; warn if nothing has been learnt."""
        if lm.problem is None:
            warnings.warn(
                f"This {type(self).__name__} has not learnt anything yet, so the frozen model is used; call fit or "
                "partial_fit first.",
                NotFittedWarning,
                stacklevel=4,
            )
        return lm

    def _read(self, X, y, sample_weight, what, facts, stream):
        """Return the statistics of texts, without changing this estimator."""
        if sample_weight is not None:
            raise InputError("texts have no sample_weight; repeat those that should count more.")
        lm = self._frozen_lm(self._open_as_saved() if facts else self._open_backbone())
        moments = self._moments_of(lm, self._exchanges(lm.model, X, y), what)
        return Statistics(moments, {"device_": str(lm.device)})

    def _moments_of(self, lm, exchanges, what, base=None):
        tree = self._tree(lm.model) if lm.target == "residual" else None
        learner = (
            LearningPass(lm.model, lm.target, self.learn_from, base) if tree is None else ChoicePass(lm.model, tree)
        )
        with closing(self._stream(learner, exchanges, what)) as stream:
            return functools.reduce(operator.add, (seen.moments for _, seen in stream))

    def _exchanges(self, lm, X, y, learnt=True):
        prompts = Prompts(lm, self.template)
        if self.choices is not None and learnt:
            if y is None:
                raise InputError("y is None; choices are learnt from sources and the right choice for each.")
            refuse_other_targets(targets_of(y), self.choices)
        return prompts.texts(X) if y is None else prompts.pairs(X, y)

    def _stream(self, passes, exchanges, what):
        # The report counts from the exchanges, whose lengths are those before truncation.
        with (
            self._report(exchanges, what) as report,
            closing(stream_features(passes, exchanges, batch_size=self.batch_size, report=report)) as stream,
        ):
            yield from stream

    def _tree(self, lm):
        """Return the tree of choices; None if there is nothing to choose."""
        tree = None if self.choices is None else choice_tree(Prompts(lm, self.template), self.choices)
        return tree if tree is not None and tree.nodes else None

    def _settings_of_statistics(self):
        return {**super()._settings_of_statistics(), "choices": None if self.choices is None else tuple(self.choices)}

    def _known(self, *, opened=False):
        if opened:
            Prompts(self._open_as_saved(), self.template)  # errors of these parameters come first
        if self._problem.settings["base"] is not None:
            raise InputError(
                f"this {type(self).__name__} was refined, so texts can neither be added nor forgotten; fit it to "
                "all texts, then refine."
            )
        output = self._problem.moments.output
        if self._problem.settings["among"] is not None and output.expected is not None:
            raise InputError(
                f"this {type(self).__name__} learnt its choices with an earlier version, and its statistics cannot be "
                "added to those of this one; fit it again."
            )
        return super()._known()

    def _state_of(self, statistics):
        lm = self._frozen_lm(self._open_backbone())
        tree = self._tree(lm.model)
        return self._state_of_problem(lm.problem_of(statistics.moments, among=None if tree is None else tree.nodes))

    def _state_of_problem(self, problem):
        moments = problem.moments
        counts = {"n_samples_seen_": moments.n_samples, "n_tokens_seen_": round(moments.output.n_tokens)}
        return {"_problem": problem, "moments_": moments, **counts}

    def _refuse_nothing(self, statistics):
        if not statistics.moments.output.n_tokens:
            raise InputError("the texts have no token to learn: each is a single token.")

    def _ready_to_save(self, moments):
        try:
            self._solution()
        except NotFittedError:  # everything was forgotten
            return
        except (FaastError, OSError):
            if not moments:
                raise

    def _restore_state(self, attributes):
        super()._restore_state({**attributes, "moments_": attributes["_problem"].moments})

    def _without_moments(self):
        """Return a copy that predicts the same, and keeps only what prediction needs."""
        twin = copy.copy(self)
        twin._problem = self._current().without_moments(self._open_as_saved())
        twin.moments_ = twin._problem.moments
        return twin

    def _current(self):
        problem = super()._current()
        if not isinstance(problem.moments, NotSaved) and not problem.moments.output.n_tokens:
            raise NotFittedError(
                "Nothing has been learnt, or all of it has been forgotten; call 'partial_fit' or 'fit' first."
            )
        self._refuse_changes("backbone")
        return problem

    def _solution(self):
        return self._current().solved(self._open_as_saved())

    def _choice_scores(self, X):
        self._check_params()
        lm = self._fast_weight_lm()
        scoring = ChoiceScorer(lm.model, Prompts(lm.model, self.template), self.choices)
        questions = scoring.prompts.questions(X, room=scoring.room)
        with self._told_if_frozen(lm).attached(private=True):
            scores = in_order(self._stream(scoring, questions, "predict"), len(questions))
        return scores.double().cpu().numpy(), scoring.choices

    def _likelihood(self, X, y):
        self._check_params()
        lm = self._fast_weight_lm()
        scorer = LikelihoodPass(lm.model, self._told_if_frozen(lm).weights, self.learn_from)
        exchanges = self._exchanges(lm.model, X, y, learnt=False)
        found = in_order(self._stream(scorer, exchanges, "score"), len(exchanges))
        return found.double().sum(0).cpu().numpy()

    def _check_params(self, partial=False):
        check_settings(target=self.target, **self._solve_settings())
        if self.choices is not None:
            checked_choices(self.choices)
        for name, allowed in (("learn_from", ("answer", "all")), ("scoring", _SCORINGS)):
            value = getattr(self, name)
            if not (isinstance(value, str) and value in allowed):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = False
        return tags


def _strings(texts):
    out = np.empty(len(texts), dtype=object)
    out[:] = texts
    return out
