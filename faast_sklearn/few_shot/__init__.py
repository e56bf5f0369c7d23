"""Few-shot episodes, many at once."""

from faast_sklearn.few_shot.score import Episodes, FewShotResult, few_shot_score, sample_episodes

__all__ = [
    "Episodes",
    "FewShotResult",
    "few_shot_score",
    "sample_episodes",
]
