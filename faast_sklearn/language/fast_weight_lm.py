"""FastWeightLM: a frozen language model that learns token sequences in one pass, without an estimator."""

import functools
import operator
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

import torch

from faast_sklearn.backbones import backbone
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.errors import InputError
from faast_sklearn.features.loop import stream_features
from faast_sklearn.language.export import save_folded
from faast_sklearn.language.fast_weights import FastWeights
from faast_sklearn.language.passes import LearningPass, LikelihoodPass
from faast_sklearn.language.problem import SolvedWeights, WeightProblem, check_settings
from faast_sklearn.language.token_ids import exchanges_of, refuse_text, token_batch

__all__ = ["FastWeightLM"]


class FastWeightLM:
    """A frozen language model with fast weights: learn from token ids, then call it or generate.

    Published FAAST checkpoints work as their authors describe: ``from_pretrained``, ``reset_projection``, ``learn``,
    ``generate``. ``learn`` adds up exact statistics of constant size, so the order and batching of sequences do not
    matter; the solve runs when the fast weights are next needed.

    Parameters
    ----------
    model : LanguageModel, or what :func:`~faast_sklearn.backbone` takes
        A model in memory needs no tokenizer.
    target : {"residual", "embedding"}, default="residual"
        See :class:`~faast_sklearn.FaastSeq2Seq`. Published checkpoints have memories of their own.
    solver : {"ridge", "pinv"}, default="ridge"
    alpha : "auto" or float, default="auto"
    memory_weight : "auto" or float, default="auto"
    max_iter : int, default=20
    device, dtype
        As in :class:`~faast_sklearn.FaastSeq2Seq`.

    Raises
    ------
    ValueError
        If a parameter has another value.
    BackboneError
        If the model cannot be opened.

    Attributes
    ----------
    model : LanguageModel
        The opened model and its tokenizer.
    moments : LanguageMoments or None
        Statistics of what was learnt.

    Examples
    --------
    >>> import torch, transformers
    >>> from faast_sklearn.language import FastWeightLM
    >>> with torch.random.fork_rng():
    ...     _ = torch.manual_seed(0)
    ...     config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=8, eos_token_id=3)
    ...     gpt2 = transformers.GPT2LMHeadModel(config).eval()
    >>> lm = FastWeightLM(gpt2, memory_weight=1.0, device="cpu")
    >>> ids = torch.tensor([[4, 5, 6, 7, 4, 5, 6], [5, 6, 7, 4, 5, 6, 7]])
    >>> before = lm(input_ids=ids, labels=ids).loss
    >>> _ = lm.learn(input_ids=ids)
    >>> bool(lm(input_ids=ids, labels=ids).loss < before)
    True

    Prompts and answers, as rows of any lengths:

    >>> lm.learn([[4], [5, 6]], answers=[[5, 3], [7, 3]]).n_tokens
    16
    """

    def __init__(
        self,
        model: Any,
        *,
        target: Literal["residual", "embedding"] = "residual",
        solver: Literal["ridge", "pinv"] = "ridge",
        alpha: Literal["auto"] | float = "auto",
        memory_weight: Literal["auto"] | float = "auto",
        max_iter: int = 20,
        device: Any = None,
        dtype: Any = "auto",
    ) -> None:
        settings: dict[str, Any] = {"solver": solver, "alpha": alpha, "memory_weight": memory_weight}
        settings["max_iter"] = max_iter
        check_settings(target=target, **settings)
        opened = isinstance(model, LanguageModel)
        self.model = model if opened else as_handle(model).open_language_model(device, dtype)
        self.target = "embedding" if self.model.readouts is not None else target
        self._settings = settings
        self.reset_projection()

    @classmethod
    def from_pretrained(
        cls, path: str, base_config: str | None = None, alpha: float | None = None, **options: Any
    ) -> "FastWeightLM":
        """Open a published FAAST checkpoint, or any language model.

        Parameters
        ----------
        path : str
            Folder, name on the hub, or spec.
        base_config : str, default=None
            Folder, ``config.json`` or hub name of the base model's configuration, if the name in a published
            checkpoint cannot be looked up.
        alpha : float, default=None
            As in the class. For a published checkpoint: exponent of its truncation, by default its own.
        **options
            Parameters of the class.

        Returns
        -------
        FastWeightLM

        Raises
        ------
        BackboneError
            If parts of the checkpoint are missing or do not fit together; the message names them.
        """
        more = {} if base_config is None else {"base_config": base_config}
        spec = path if not isinstance(path, str) or ":" in path else f"hf:{path}"
        if alpha is not None:
            options["alpha"] = alpha
        return cls(backbone(spec, **more), **options)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model; None if it has none."""
        return self.model.tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def moments(self) -> Any:
        """Statistics of what was learnt; None if nothing was."""
        return None if self.problem is None else self.problem.moments

    @property
    def n_tokens(self) -> int:
        """Number of tokens learnt."""
        return 0 if self.moments is None else int(self.moments.output.n_tokens)

    def reset_projection(self) -> None:
        """Forget everything."""
        self.problem: WeightProblem | None = None

    def learn(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        labels: Any = None,
        *,
        answers: Any = None,
        batch_size: int | Literal["auto"] = "auto",
        **inputs: Any,
    ) -> "FastWeightLM":
        """Learn which token follows which hidden state.

        A tensor is one batch, as transformers take it. Samples of any lengths, rows of ids, are put into batches here.

        Parameters
        ----------
        input_ids : tensor of shape (n, t), or sequence of n sequences of int
        attention_mask : like input_ids, default=None
            0 for padding, which is not learnt.
        labels : like input_ids, default=None
            As in transformers: one batch. For a decoder, the tokens, with -100 for those not to learn; by default all
            are learnt. For an encoder-decoder, the answers.
        answers : sequence of n sequences of int, default=None
            In place of ``labels``: what follows each sample of ``input_ids``, its prompt. Only answers are learnt, as
            they are: add the end token if the model should learn to stop. Encoder-decoders need answers or labels.
        batch_size : int or "auto", default="auto"
            Samples per pass, unless ``input_ids`` is a batch already.
        **inputs
            Tensors; passed to the model with the batch.

        Returns
        -------
        FastWeightLM
            Itself.

        Raises
        ------
        InputError
            If something is not token ids of this model, is empty or too long, or hidden states are not finite. Nothing
            has then been learnt.
        """
        learner = LearningPass(self.model, self.target)
        found = self._outputs(learner, input_ids, attention_mask, labels, answers, batch_size, inputs)
        moments = functools.reduce(operator.add, (seen.moments for seen in found))
        self.problem = self.problem_of(moments if self.moments is None else self.moments + moments)
        return self

    def token_scores(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        labels: Any = None,
        *,
        answers: Any = None,
        batch_size: int | Literal["auto"] = "auto",
        **inputs: Any,
    ) -> dict[str, Any]:
        """Return the mean loss and the accuracy per token, with the fast weights.

        Parameters
        ----------
        input_ids, attention_mask, labels, answers, batch_size, **inputs
            As in :meth:`learn`; the tokens that it would learn are scored.

        Returns
        -------
        dict
            As of :meth:`FaastSeq2Seq.token_scores <faast_sklearn.FaastSeq2Seq.token_scores>`: ``"nll"``,
            ``"accuracy"``, ``"n_tokens"``.

        Raises
        ------
        InputError
            As in :meth:`learn`.
        """
        scorer = LikelihoodPass(self.model, self.weights)
        found = self._outputs(scorer, input_ids, attention_mask, labels, answers, batch_size, inputs)
        total, tokens, correct = sum(rows.double().sum(0) for rows in found).tolist()
        if not tokens:
            raise InputError("there is no token to score: each sample is a single token, or labels are all -100.")
        return {"nll": -total / tokens, "accuracy": correct / tokens, "n_tokens": int(tokens)}

    def _outputs(self, passing, input_ids, attention_mask, labels, answers, batch_size, inputs):
        """Run a pass over token ids, and yield what it returns for each batch."""
        if answers is not None and (labels is not None or inputs):
            raise InputError(f"answers= goes with input_ids alone, without {next(iter(inputs), 'labels')}=.")
        if answers is None and (torch.is_tensor(input_ids) or labels is not None or inputs):
            output = passing.forward(token_batch(self.model, input_ids, attention_mask, labels, inputs))
            if not bool(passing.finite(output).all()):
                raise InputError(f"hidden states are not finite in {self.model.dtype}; try dtype='float32'.")
            yield output
        else:
            exchanges = exchanges_of(self.model, input_ids, answers, attention_mask)
            with closing(stream_features(passing, exchanges, batch_size=batch_size)) as stream:
                yield from (output for _, output in stream)

    def problem_of(self, moments: Any, **more: Any) -> "WeightProblem":
        """Return the problem made of moments and the settings of this model; nothing is solved yet.

        Parameters
        ----------
        moments : LanguageMoments
        **more
            ``among``, ``base`` and ``hold_out`` of ``faast_sklearn.language.problem.solve_weights``.

        Returns
        -------
        WeightProblem
        """
        return WeightProblem(moments, target=self.target, **self._settings, **more)

    def solved(self) -> SolvedWeights | None:
        """Return the solved fast weights and their settings; None if nothing has been learnt."""
        return None if self.problem is None else self.problem.solved(self.model)

    @property
    def weights(self) -> FastWeights:
        """The fast weights; without any effect if nothing has been learnt."""
        return FastWeights("residual", None) if self.problem is None else self.solved().weights

    @contextmanager
    def attached(self, *, private: bool = False) -> Iterator[Any]:
        """Attach the fast weights to the transformers model for the time of a block, and yield the model.

        See :meth:`FaastSeq2Seq.attached <faast_sklearn.FaastSeq2Seq.attached>`.

        Parameters
        ----------
        private : bool, default=False
            Attach them for the library's own passes in this thread only.
        """
        with self.weights.attached(self.model, private=private):
            yield self.model.module

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own ``generate`` with the fast weights; without gradients."""
        with self._called_with(args, kwargs) as module:
            return module.generate(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the fast weights; without gradients."""
        with self._called_with(args, kwargs) as module:
            return module(*args, **kwargs)

    @contextmanager
    def _called_with(self, args, kwargs):
        refuse_text(next(iter(args), kwargs.get("inputs", kwargs.get("input_ids"))), "input_ids")
        with torch.no_grad(), self.attached() as module:
            yield module

    def save_folded(self, folder: str | os.PathLike) -> None:
        """Write a plain transformers checkpoint with the fast weights in its output matrix.

        Parameters
        ----------
        folder : str or path
            As in :meth:`FaastSeq2Seq.save_folded <faast_sklearn.FaastSeq2Seq.save_folded>`; without a tokenizer if the
            model has none.

        Raises
        ------
        BackboneError
            If the fast weights cannot be folded, or logits differ.
        """
        save_folded(self.model, self.weights, folder)

    __call__ = forward
