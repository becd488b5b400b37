"""Writes accuracy.json: how probable as few right answers are as SciPy computes it (Fisher's exact test, one-sided).

    venv/bin/python accuracy.py > accuracy.json
"""

import json

import numpy as np
from scipy import stats

random = np.random.default_rng(2)


def vector(before, now):
    (m, m_right), (n, n_right) = before, now
    fewer = stats.hypergeom.logcdf(n_right, n + m, n_right + m_right, n)
    if n + m < 10_000:
        table = [[n_right, n - n_right], [m_right, m - m_right]]
        exact = stats.fisher_exact(table, alternative="less").pvalue
        assert abs(np.log(exact) - fewer) < 1e-6 * (1 + abs(fewer)), (before, now)
    return {
        "before": [int(x) for x in before],
        "now": [int(x) for x in now],
        # No smaller number has a double to itself.
        "fewer_log_probability": float(max(fewer, np.log(1e-300))),
    }


vectors = [vector((10, 10), (10, 0)), vector((10, 0), (10, 0)), vector((10, 10), (10, 10)), vector((1, 1), (50, 3))]
for m in (50, 500, 3_000):
    for n in (50, 500, 3_000):
        for share in (0.5, 0.9, 0.99):
            for drop in (-0.05, 0.0, 0.05, 0.1):
                now = min(1.0, share - drop)
                vectors.append(vector((m, random.binomial(m, share)), (n, random.binomial(n, now))))
print("[\n" + ",\n".join(json.dumps(vector) for vector in vectors) + "\n]")
