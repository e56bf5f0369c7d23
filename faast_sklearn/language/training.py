"""Train what the published FAAST checkpoints add to their base models: the readouts of their middle memories."""

import contextlib
import copy
import functools
import math
import numbers
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faast_sklearn.backbones.base import in_eval_mode
from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.transformers.published import Readouts, middle_layers
from faast_sklearn.backbones.transformers.text import n_known_tokens, refuse_unknown_tokens
from faast_sklearn.errors import InputError, refuse_missing_parent, shortened
from faast_sklearn.features.progress import Report
from faast_sklearn.language.export import save_published
from faast_sklearn.language.fast_weight_lm import FastWeightLM
from faast_sklearn.language.reserve import digest
from faast_sklearn.persistence.archive import read_archive, write_archive

__all__ = ["train_readouts"]

_STATE = "training.safetensors"
_WARM_UP = 0.05  # share of the steps
_MOST_NORM = 1.0  # of a gradient, which is scaled down beyond it
_MOMENTS = ("exp_avg", "exp_avg_sq")


def train_readouts(
    model: Any,
    corpus: Iterable,
    *,
    folder: str | os.PathLike | None = None,
    n_layers: int = 2,
    steps: int = 1000,
    lr: float = 1e-3,
    window: int = 256,
    n_learnt: int = 8,
    n_scored: int = 4,
    alpha: float = 1.0,
    memory_weight: float = 0.9,
    save_every: int = 100,
    random_state: int = 0,
    device: Any = None,
    dtype: Any = "auto",
    verbose: int = 0,
) -> tuple[FastWeightLM, np.ndarray]:
    """Train the readouts of memories in front of inner blocks, on plain text; everything else stays frozen.

    A step draws a stretch of the corpus. Its first windows are learnt forward-only, by the code that learns with a
    published checkpoint. The loss is the cross-entropy of the windows after them, each of which is read on its own, so
    that what was learnt reaches them through the memories alone. With K the states in front of a block, V the states
    one position later and W = pinv(K) (sigmoid(scorer([K, V])) V), a memory adds ``out_proj(h W)`` to a state h.
    Gradients reach ``scorer`` and ``out_proj`` alone, and need no derivative of the pseudo-inverse, since K depends on
    neither. AdamW, a linear warm-up over 5 % of the steps and then half a cosine, gradients clipped to norm 1.

    Parameters
    ----------
    model : LanguageModel, or what :func:`~faast_sklearn.backbone` takes
        A decoder, which is not changed. The readouts of a published checkpoint are not used.
    corpus : iterable of str, or of sequences of token ids
        Read once, in this order. Neighbours should have something to do with each other: what one teaches is to help
        with the next.
    folder : str or path, default=None
        Where to write the result, in the layout of the published checkpoints, which ``"hf:FOLDER"`` and
        :meth:`FastWeightLM.from_pretrained <faast_sklearn.language.FastWeightLM.from_pretrained>` open; and meanwhile
        the state of the training, from which the same call goes on after an interruption. By default nothing is
        written.
    n_layers : int, default=2
        Number of middle memories, evenly spaced.
    steps : int, default=1000
    lr : float, default=1e-3
        Largest learning rate.
    window : int, default=256
        Tokens that are read together.
    n_learnt, n_scored : int, default=8 and 4
        Windows of a step that are learnt, and windows after them that give the loss.
    alpha : float, default=1.0
        Exponent of the truncation of all memories, kept in the checkpoint.
    memory_weight : float, default=0.9
        Of the output memory, which is there in training as in use; kept in the checkpoint.
    save_every : int, default=100
        Steps from one state on disk to the next.
    random_state : int, default=0
        Decides which stretches are drawn.
    device, dtype
        As in :class:`~faast_sklearn.FaastSeq2Seq`. Readouts are trained in float32 in any case.
    verbose : int, default=0
        1 shows a progress bar with the loss.

    Returns
    -------
    lm : FastWeightLM
        With the trained readouts; it has not learnt anything yet.
    losses : ndarray of shape (steps,)
        Of each step, in nats per token, before its update.

    Raises
    ------
    InputError
        If the corpus is empty, too short or has something else than texts; if the model is not a decoder with a final
        norm; if ``folder`` has the state of another training; or if the loss is not finite.
    ValueError
        If a number is out of range.

    Notes
    -----
    A step costs a forward pass of ``n_learnt + n_scored`` windows, the backward pass of the latter down to the first
    memory, and ``n_layers + 1`` decompositions of O(d³) in float64. The logits of ``n_scored`` windows exist at once.

    The memories are those of Bao et al., arXiv 2605.04651. Their code trains them with the loss of the very windows
    that are learnt, together with a bank of earlier ones, with dropout on what is read, and from random scorers. Here
    the loss is that of other windows, since a memory is to help with what it has not seen; there is no dropout; and
    scorers start at zero. Here as there ``out_proj`` starts at zero, where a middle memory does nothing.

    Examples
    --------
    >>> import torch, transformers
    >>> from faast_sklearn.backbones.transformers.language_model import LanguageModel
    >>> from faast_sklearn.language import FastWeightLM, train_readouts
    >>> class NoTokens:
    ...     eos_token_id = 3
    >>> with torch.random.fork_rng():
    ...     _ = torch.manual_seed(0)
    ...     config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=3, n_head=1, n_positions=8, eos_token_id=3)
    ...     gpt2 = transformers.GPT2LMHeadModel(config).eval()
    >>> decoder = LanguageModel(gpt2, NoTokens(), torch.device("cpu"), torch.float32)
    >>> corpus = [[4, 5, 6, 7, 8, 4, 5, 6]] * 40
    >>> lm, losses = train_readouts(decoder, corpus, steps=20, lr=0.01, window=8)
    >>> bool(losses[-5:].mean() < losses[:5].mean())
    True
    >>> ids = torch.tensor([corpus[0]])
    >>> bool(lm.learn(ids)(ids, labels=ids).loss < FastWeightLM(decoder)(ids, labels=ids).loss)
    True
    """
    counts = {"n_layers": n_layers, "steps": steps, "window": window, "n_learnt": n_learnt, "n_scored": n_scored}
    reals = {"lr": lr, "alpha": alpha, "memory_weight": memory_weight}
    _check({**counts, "save_every": save_every}, reals, random_state)
    settings = {name: int(value) for name, value in {**counts, "random_state": random_state}.items()}
    settings |= {name: float(value) for name, value in reals.items()}
    if folder is not None:
        refuse_missing_parent(folder)
    lm = copy.copy(FastWeightLM(model, device=device, dtype=dtype).model)  # a copy, to have readouts of its own
    _check_model(lm, n_layers, window)
    stream = _stream(lm, corpus, window * (n_learnt + n_scored))
    training = _Training(lm, stream, settings)
    state = None if folder is None else Path(folder) / _STATE
    if state is not None:
        state.parent.mkdir(exist_ok=True)
        if state.is_file():
            training.resume(state)
    with Report(verbose=verbose, description="train readouts", total=steps, unit="steps") as report:
        report.add(len(training.losses))
        with _weights_held(lm.module):
            while len(training.losses) < steps:
                loss = training.step()
                report.show(loss=loss)
                report.add(1)
                done = len(training.losses)
                if state is not None and (done % save_every == 0 or done == steps):
                    training.save(state)
    lm.readouts = training.readouts()
    if folder is not None:
        save_published(lm, folder)
    return FastWeightLM(lm), np.array(training.losses)


class _Training:
    """Readouts while they are trained, and all that decides how the training goes on."""

    def __init__(self, lm, stream, settings):
        self.lm, self.stream, self.settings, self.losses = lm, stream, settings, []
        width, n = lm.head.in_features, settings["n_layers"]
        self.layers = middle_layers(len(lm.layers), n)

        def zeros(*shape):
            return torch.zeros(shape, device=lm.device, requires_grad=True)

        self.parameters = [zeros(1, 2 * width) for _ in range(n)] + [zeros(width, width) for _ in range(n)]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.0)
        lm.readouts = self.readouts()
        self.learner = FastWeightLM(lm)

    def readouts(self, trained=None):
        """Return the readouts, in the model's dtype; without gradients unless ``trained`` are the parameters."""
        given = [tensor.detach() for tensor in self.parameters] if trained is None else trained
        n, settings = len(self.layers), self.settings
        made = Readouts(tuple(given[:n]), tuple(given[n:]), self.layers, settings["alpha"], settings["memory_weight"])
        return made.to(self.lm.device, self.lm.dtype)

    def step(self):
        """Take one step and return its loss."""
        done, steps = len(self.losses), self.settings["steps"]
        warm = min(1.0, (done + 1) / max(1.0, _WARM_UP * steps))
        self.optimizer.param_groups[0]["lr"] = self.settings["lr"] * warm * (1 + math.cos(math.pi * done / steps)) / 2
        loss = self._loss(self._windows(done))
        number = float(loss.detach())
        if not math.isfinite(number):
            raise InputError(f"the loss of step {done} is not finite; use a smaller lr, or dtype='float32'.")
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, _MOST_NORM)
        self.optimizer.step()
        self.losses.append(number)
        return number

    def _windows(self, step):
        """Draw the windows of a step; they depend on nothing but the step, so nothing of this has to be saved."""
        window, n = self.settings["window"], self.settings["n_learnt"] + self.settings["n_scored"]
        rng = np.random.default_rng([self.settings["random_state"], step])
        start = int(rng.integers(len(self.stream) - n * window + 1))
        return self.stream[start : start + n * window].reshape(n, window)

    @torch.enable_grad()
    def _loss(self, windows):
        n = self.settings["n_learnt"]
        self.lm.readouts = self.readouts(self.parameters)
        self.learner.reset_projection()
        self.learner.learn(windows[:n])
        scored = windows[n:].to(self.lm.device)
        with in_eval_mode(self.lm.module), self.learner.attached(private=True) as module:
            logits = module(input_ids=scored, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), scored[:, 1:].flatten())

    @functools.cached_property
    def _manifest(self):
        model, text = fingerprint(self.lm.module.state_dict()), digest(self.stream).hex()
        return {**self.settings, "dtype": str(self.lm.dtype), "model": model, "corpus": text}

    def save(self, path):
        """Write the state; what is resumed from it gives the numbers of a training that was not interrupted."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for i, parameter in enumerate(self.parameters):
            tensors[str(i)] = parameter.detach()
            for name in _MOMENTS:
                tensors[f"{i}.{name}"] = self.optimizer.state[parameter][name]
        write_archive(path, {"training": self._manifest}, tensors)

    def resume(self, path):
        """Read the state; raise InputError if it is that of another training."""
        manifest, tensors = read_archive(path)
        found, wanted = manifest.get("training") if isinstance(manifest, dict) else None, self._manifest
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            raise InputError(f"{str(path)!r} is not the state of a training of readouts; use another folder.")
        other = [name for name, value in wanted.items() if found[name] != value]
        if other:
            raise InputError(
                f"{str(path)!r} is the state of a training with another {', '.join(other)}; use another folder, or "
                "delete that file to start afresh."
            )
        self.losses = tensors["losses"].tolist()
        step = torch.tensor(float(len(self.losses)))
        state = {}
        for i, parameter in enumerate(self.parameters):
            parameter.data.copy_(tensors[str(i)])
            state[i] = {"step": step.clone(), **{name: tensors[f"{i}.{name}"] for name in _MOMENTS}}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


@contextlib.contextmanager
def _weights_held(module: torch.nn.Module) -> Iterator[None]:
    """Ask for no gradients of a module's own weights within a block, which saves their activations."""
    asked = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _check(counts, reals, random_state):
    leasts = {"window": 2, "random_state": 0}
    for name, value in {**counts, "random_state": random_state}.items():
        least = leasts.get(name, 1)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    for name, value in reals.items():
        most = 1.0 if name == "memory_weight" else math.inf
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0 < value <= most or value == math.inf:
            raise ValueError(f"{name} must be a number above 0{' and at most 1' if most == 1 else ''}, got {value!r}.")


def _check_model(lm, n_layers, window):
    if lm.encoder_decoder or lm.final_norm is None:
        lack = "is an encoder-decoder" if lm.encoder_decoder else "has no norm in front of its output matrix"
        raise InputError(
            f"{type(lm.module).__name__} {lack}, and the memories of the published checkpoints are those of decoders "
            "with a final norm; use one of those, such as a Llama, Qwen or GPT-2 model."
        )
    if n_layers >= len(lm.layers):
        raise InputError(f"n_layers={n_layers}, but the model has {len(lm.layers)} blocks; use fewer.")
    if lm.limit is not None and window > lm.limit:
        raise InputError(f"window={window}, but the model reads {lm.limit} tokens; use a shorter window.")


def _stream(lm, corpus, least):
    """Return the tokens of all texts, each followed by the token that ends a text."""
    if isinstance(corpus, str) or not isinstance(corpus, Iterable):
        raise InputError(f"corpus must be an iterable of texts, such as a list of str; got {shortened(corpus)}.")
    end = list(lm.eos_ids[:1])
    parts = []
    for i, text in enumerate(corpus):
        if isinstance(text, str):
            if lm.tokenizer is None:
                raise InputError("the model has no tokenizer; pass sequences of token ids as corpus.")
            text = lm.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        ids = np.asarray(text)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(f"corpus[{i}] is neither a text nor a sequence of token ids: {shortened(text)}.")
        parts.append(np.concatenate([ids.astype(np.int64), np.array(end, np.int64)]))
    n = sum(map(len, parts))
    if n < least:
        raise InputError(
            f"the corpus has {n} tokens, and a step needs {least}: window * (n_learnt + n_scored). Pass more text, or "
            "a smaller window, n_learnt or n_scored."
        )
    stream = np.concatenate(parts)
    refuse_unknown_tokens([[int(stream.max())]], n_known_tokens(lm.module), type(lm.module).__name__)
    return torch.from_numpy(stream)
