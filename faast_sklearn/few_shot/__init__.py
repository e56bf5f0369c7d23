"""Few-shot evaluation: accuracy over many small tasks drawn from labelled samples.

:func:`few_shot_score` evaluates a classifier; :func:`sample_episodes` draws the tasks.
"""

from faast_sklearn.few_shot.episodes import Episodes, sample_episodes
from faast_sklearn.few_shot.score import FewShotResult, few_shot_score

__all__ = ["Episodes", "FewShotResult", "few_shot_score", "sample_episodes"]
