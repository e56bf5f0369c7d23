"""Fast weights for language models: prompts, passes of the frozen model, solves, generation, export."""

from faast_sklearn.language.fast_weight_lm import FastWeightLM

__all__ = ["FastWeightLM"]
