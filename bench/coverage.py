"""How often the intervals hold the truth: python bench/coverage.py [SIMULATIONS]

Simulated evaluations whose true rates are known, simulated certificates C1, and simulated tables of few units.  An
interval of 95% should hold the truth in 95 of 100.  2,000 of each take about six minutes; docs/fidelity.md has them.
"""
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from eval import score  # noqa: E402
from pages.statistics import bootstrap_interval  # noqa: E402
from stage2_shape import certify  # noqa: E402


def evaluations(number: int) -> tuple[int, int]:
    """Of 40 problems, 8 samples each: how many intervals over problems, and over samples, hold what they estimate."""
    rng, over_problems, over_samples = np.random.default_rng(0), 0, 0
    for _ in range(number):
        rates = rng.beta(2, 2, 40)
        verdicts = rng.random((40, 8)) < rates[:, None]
        figures = score([{"id": str(i), "completions": [""] * 8, "verdicts": row.tolist()}
                         for i, row in enumerate(verdicts)])["avg@8"]
        assert abs(figures["value"] - verdicts.mean()) < 1e-6
        low, high = figures["interval_over_problems"]
        over_problems += low <= 0.5 <= high                         # the mean over all problems there could be
        low, high = figures["interval_over_samples"]
        over_samples += low <= rates.mean() <= high                 # these problems, all completions there could be
    return over_problems, over_samples


def certificates(number: int) -> int:
    """Right completions score one standard deviation higher: AUC = Φ(1 / √2)."""
    rng, covered, truth = np.random.default_rng(0), 0, 0.5 * (1 + math.erf(0.5))
    for _ in range(number):
        right = rng.random((40, 4)) < 0.5
        scores = rng.normal(size=right.shape) + right
        low, high = certify(scores, np.ones((40, 4)), right, 0.5)["sum"]["within_prompt_auc"]["interval"]
        covered += low <= truth <= high
    return covered


def tables(number: int, units: int, stuck: float) -> int:
    """Scores of Beta(8, 2), mean 0.8; or, with a chance of `stuck`, 0.01, and 0.99 without."""
    rng, covered = np.random.default_rng(0), 0
    truth = 0.01 * stuck + 0.99 * (1 - stuck) if stuck else 0.8
    for _ in range(number):
        scores = np.where(rng.random(units) < stuck, 0.01, 0.99) if stuck else rng.beta(8, 2, units)
        low, high = bootstrap_interval(scores, 2000)
        assert 0 <= low <= high <= 1
        covered += low <= truth <= high
    return covered


if __name__ == "__main__":
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for units in (3, 5, 10):
        for stuck in (0.0, 0.2, 0.5):
            held = tables(simulations, units, stuck)
            print(f"a table of {units} units, {stuck:.0%} stuck: {held:,} of {simulations:,}")
    print("avg@8 over problems, over samples: {:,} and {:,}".format(*evaluations(simulations)), f"of {simulations:,}")
    print(f"C1: {certificates(simulations):,} of {simulations:,}")
