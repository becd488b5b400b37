"""Prints how often simulated experiments come to a verdict, and after how many judged predictions of each variant, where somebody
looks after every ten of each. Figures in docs/learning.md.

    venv/bin/python simulate.py
"""

import numpy as np
from confseq import boundaries

random = np.random.default_rng(1)
STEP = 10


def simulate(first, second, narrowest, most, experiments, comparisons=1):
    counts = np.arange(narrowest, most + 1, STEP, dtype=float)
    level = 0.05 / comparisons
    far = boundaries.normal_mixture_bound(counts, level, narrowest, level, is_one_sided=False) / np.sqrt(counts)
    correct = [random.binomial(narrowest - STEP, share, experiments) for share in (first, second)]
    needed = np.zeros(experiments)
    for count, deviations in zip(counts, far):
        correct = [c + random.binomial(STEP, share, experiments) for c, share in zip(correct, (first, second))]
        variance = sum((c + 1) / (count + 2) * (1 - (c + 1) / (count + 2)) / count for c in correct)
        beyond = np.abs(correct[1] - correct[0]) / count > deviations * np.sqrt(variance)
        needed[(needed == 0) & beyond] = count
    found = needed > 0
    median = np.median(needed[found]) if found.any() else float("nan")
    print(f"{first} and {second} from {narrowest} to {most}: {found.mean():.4f}, median {median:.0f}")


for share, narrowest in ((0.5, 1000), (0.9, 1000), (0.98, 1000), (0.9, 100), (0.98, 100)):
    simulate(share, share, narrowest, 20_000, 10_000)
for other in (0.95, 0.93, 0.92, 0.91):
    simulate(0.9, other, 1000, 50_000, 1000)
