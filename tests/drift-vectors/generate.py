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
    each = float(random.choice([1.0, 0.07]))
    return {
        "reference": [int(count) for count in reference],
        "window": [int(count) for count in window],
        "psi": float(psi),
        "ks": float(ks.statistic),
        # No smaller number has a double to itself.
        "ks_log_probability": float(np.log(max(ks.pvalue, 1e-300))),
        "each": each,
        "chi_squared": homogeneity(np.array(reference), np.array(window), each),
    }


def homogeneity(reference, window, each):
    """Pearson's test of counts of which only a share is independent. Bins of which fewer than five are to be expected in the smaller
    set go together, or where they hold too little all the same to the last other one."""
    smaller = min(reference.sum(), window.sum()) / (reference.sum() + window.sum()) * each
    enough = (reference + window) * smaller >= 5
    table = np.array([reference[enough], window[enough]], dtype=float)
    rest = np.array([reference[~enough].sum(), window[~enough].sum()], dtype=float)
    if table.shape[1] and rest.sum() * smaller < 5:
        table[:, -1] += rest
    else:
        table = np.column_stack([table, rest])
    if table.shape[1] < 2:
        return 1.0
    statistic, _, freedom, _ = stats.chi2_contingency(table, correction=False)
    return float(stats.chi2.sf(statistic * each, freedom))


vectors = []
for bins in (2, 4, 10, 16, 77, 128):
    for texts in (60, 500, 1500, 20_000):
        for shift in (0.0, 0.1, 0.3, 0.5, 0.8):
            shares = random.dirichlet(np.full(bins, 2.0))
            other = random.dirichlet(np.full(bins, 2.0))
            moved = (1 - shift) * shares + shift * other
            vectors.append(
                vector(random.multinomial(texts, shares), random.multinomial(texts * 2 // 3, moved))
            )
print(json.dumps(vectors))
