"""Few-shot evaluation: accuracy over many small tasks drawn from labelled samples.

A frozen backbone sees each sample once. Episodes of a plain :class:`~faast_sklearn.FaastClassifier` are then solved all
at once (module ``faast_sklearn.few_shot.episodes``); any other classifier is fitted and scored episode by episode.
"""

from faast_sklearn.few_shot.episodes import Episodes, sample_episodes
from faast_sklearn.few_shot.score import FewShotResult, few_shot_score

__all__ = ["Episodes", "FewShotResult", "few_shot_score", "sample_episodes"]
