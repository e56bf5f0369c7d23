"""FastWeightLM: a frozen language model that learns token sequences in one pass, without an estimator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from faast_sklearn.backbones import backbone
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.backbones.transformers.text import n_known_tokens, refuse_unknown_tokens
from faast_sklearn.errors import InputError
from faast_sklearn.language.fast_weights import FastWeights
from faast_sklearn.language.passes import observe
from faast_sklearn.language.problem import SolvedWeights, WeightProblem, check_settings
from faast_sklearn.language.reserve import digest

__all__ = ["FastWeightLM"]


class FastWeightLM:
    """A frozen language model with fast weights: learn from token ids, then call it or generate.

    Published FAAST checkpoints work as their authors describe: ``from_pretrained``, ``reset_projection``, ``learn``,
    ``generate``. ``learn`` adds up exact statistics of constant size, so the order and batching of sequences do not
    matter; the solve runs when the fast weights are next needed.

    Parameters
    ----------
    model : LanguageModel, or what :func:`~faast_sklearn.backbone` takes
    target : {"residual", "embedding"}, default="residual"
        See :class:`~faast_sklearn.FaastSeq2Seq`. Published checkpoints have memories of their own.
    solver : {"ridge", "pinv"}, default="ridge"
    alpha : "auto" or float, default="auto"
    memory_weight : "auto" or float, default="auto"
    device, dtype
        As in :class:`~faast_sklearn.FaastSeq2Seq`.

    Raises
    ------
    ValueError
        If a parameter has another value.
    BackboneError
        If the model cannot be opened. It needs no tokenizer.

    Attributes
    ----------
    model : LanguageModel
        The opened model and its tokenizer.
    moments : LanguageMoments or None
        Statistics of what was learnt.

    Examples
    --------
    >>> import torch, transformers
    >>> from faast_sklearn.backbones.transformers.language_model import LanguageModel
    >>> from faast_sklearn.language import FastWeightLM
    >>> class NoTokens:
    ...     eos_token_id = 3
    >>> with torch.random.fork_rng():
    ...     _ = torch.manual_seed(0)
    ...     config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=8, eos_token_id=3)
    ...     gpt2 = transformers.GPT2LMHeadModel(config).eval()
    >>> lm = FastWeightLM(LanguageModel(gpt2, NoTokens(), torch.device("cpu"), torch.float32), memory_weight=1.0)
    >>> ids = torch.tensor([[4, 5, 6, 7, 4, 5, 6], [5, 6, 7, 4, 5, 6, 7]])
    >>> before = lm(input_ids=ids, labels=ids).loss
    >>> _ = lm.learn(input_ids=ids)
    >>> bool(lm(input_ids=ids, labels=ids).loss < before)
    True
    """

    def __init__(
        self,
        model: Any,
        *,
        target: Literal["residual", "embedding"] = "residual",
        solver: Literal["ridge", "pinv"] = "ridge",
        alpha: Literal["auto"] | float = "auto",
        memory_weight: Literal["auto"] | float = "auto",
        device: Any = None,
        dtype: Any = "auto",
    ) -> None:
        check_settings(target=target, solver=solver, alpha=alpha, memory_weight=memory_weight)
        opened = isinstance(model, LanguageModel)
        self.model = model if opened else as_handle(model).open_language_model(device, dtype)
        self.target = "embedding" if self.model.readouts is not None else target
        self._settings: dict[str, Any] = {"solver": solver, "alpha": alpha, "memory_weight": memory_weight}
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
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> "FastWeightLM":
        """Learn which token follows which hidden state.

        Parameters
        ----------
        input_ids : tensor of shape (n, t)
        attention_mask : tensor of shape (n, t), default=None
            0 for padding, which is not learnt.
        labels : tensor of shape (n, t), default=None
            As in transformers. For a decoder, the tokens, with -100 for those not to learn; by default all are learnt.
            For an encoder-decoder, the answers; required.
        **inputs
            Passed to the model.

        Returns
        -------
        FastWeightLM
            Itself.
        """
        input_ids = torch.as_tensor(input_ids)
        known = n_known_tokens(self.model.module)
        for ids in (input_ids, *([] if labels is None else [torch.as_tensor(labels)])):
            refuse_unknown_tokens(ids.tolist(), known, type(self.model.module).__name__)
        mask = torch.ones_like(input_ids) if attention_mask is None else torch.as_tensor(attention_mask)
        labels = None if labels is None else torch.as_tensor(labels)
        if self.model.encoder_decoder:
            if labels is None:
                raise InputError("an encoder-decoder model learns answers; pass their tokens as labels=.")
            targets, where = labels.clamp_min(0), labels >= 0
            inputs["decoder_input_ids"] = self.model.module.prepare_decoder_input_ids_from_labels(labels=labels)
        else:
            targets, where = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
            targets[:, :-1] = input_ids[:, 1:]
            where[:, :-1] = (mask[:, 1:] > 0) & (mask[:, :-1] > 0)
            if labels is not None:
                where[:, :-1] &= labels[:, 1:] >= 0
        digests = [
            digest(row[kept > 0].tolist(), target[learnt].tolist())
            for row, kept, target, learnt in zip(input_ids.cpu(), mask.cpu(), targets.cpu(), where.cpu(), strict=True)
        ]
        device = self.device
        inputs = {"input_ids": input_ids, "attention_mask": mask, **inputs}
        inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        seen = observe(self.model, inputs, where.to(device), targets.to(device), digests, target=self.target)
        if not bool(seen.finite.all()):
            raise InputError(f"hidden states are not finite in {self.model.dtype}; try dtype='float32'.")
        self.problem = self.problem_of(seen.moments if self.moments is None else self.moments + seen.moments)
        return self

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

        Parameters
        ----------
        private : bool, default=False
            Attach them for the library's own passes in this thread only.
        """
        with self.weights.attached(self.model, private=private):
            yield self.model.module

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own ``generate`` with the fast weights; without gradients."""
        with torch.no_grad(), self.attached() as module:
            return module.generate(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the fast weights; without gradients."""
        with torch.no_grad(), self.attached() as module:
            return module(*args, **kwargs)

    __call__ = forward
