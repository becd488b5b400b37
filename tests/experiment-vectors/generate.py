"""Writes vectors.json: differences of two shares with confidence sequences whose boundary is confseq's.

confseq 0.0.9 has no wheel for Python 3.11; with 3.10:

    python3.10 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python generate.py > vectors.json
"""

import json

import numpy as np
from confseq import boundaries

random = np.random.default_rng(1)


def variance(part, whole):
    # Laplace's rule: not 0 where all or none are counted.
    share = (part + 1) / (whole + 2)
    return share * (1 - share) / whole


def vector(first, second, narrowest, level):
    effect = second[0] / second[1] - first[0] / first[1]
    count = 2 / (1 / first[1] + 1 / second[1])
    bound = boundaries.normal_mixture_bound(np.array([count]), level, narrowest, level, is_one_sided=False)
    deviations = float(bound[0]) / count**0.5
    far = deviations * (variance(*first) + variance(*second)) ** 0.5
    return {
        "first": first,
        "second": second,
        "narrowest": narrowest,
        "level": level,
        "deviations": deviations,
        "effect": effect,
        "lower": effect - far,
        "upper": effect + far,
    }


vectors = []
for comparisons in (1, 2, 4):
    for narrowest in (100, 1000):
        for texts in ((100, 100), (1000, 1000), (19_000, 1000), (1200, 60_000), (1_000_000, 1_000_000)):
            for shares in ((0.9, 0.9), (0.9, 0.93), (0.5, 0.4), (1.0, 1.0), (0.0, 0.02)):
                parts = [int(random.binomial(n, p)) for n, p in zip(texts, shares)]
                pairs = [(part, n) for part, n in zip(parts, texts)]
                vectors.append(vector(*pairs, float(narrowest), 0.05 / comparisons))
print(json.dumps(vectors))
