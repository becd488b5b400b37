"""Writes vectors.json: distances of counts over the same bins as Evidently and SciPy compute them.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python generate.py > vectors.json
"""

import json

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests.psi import _psi
from evidently.legacy.core import ColumnType
from scipy import stats

random = np.random.default_rng(1)


def vector(reference, window):
    # As values of a category each: Evidently counts them in these very bins.
    values = [pd.Series(np.repeat(np.arange(len(counts)), counts)) for counts in (reference, window)]
    psi, _ = _psi(*values, ColumnType.Categorical, 0.1)
    ks = stats.ks_2samp(*values, method="asymp")
    table = np.array([reference, window])
    table = table[:, table.sum(axis=0) > 0]
    tested = stats.chi2_contingency(table, correction=False) if table.shape[1] > 1 else None
    enough = tested is not None and tested.expected_freq.min() >= 5
    return {
        "reference": [int(count) for count in reference],
        "window": [int(count) for count in window],
        "psi": float(psi),
        "ks": float(ks.statistic),
        "ks_probability": float(ks.pvalue),
        "chi_squared": float(tested.pvalue) if enough else None,
    }


vectors = []
for bins in (2, 4, 10, 16, 77, 128):
    for texts in (60, 500, 1500, 20_000):
        for shift in (0.0, 0.1, 0.6):
            shares = random.dirichlet(np.full(bins, 2.0))
            other = random.dirichlet(np.full(bins, 2.0))
            moved = (1 - shift) * shares + shift * other
            vectors.append(
                vector(random.multinomial(texts, shares), random.multinomial(texts * 2 // 3, moved))
            )
print(json.dumps(vectors))
