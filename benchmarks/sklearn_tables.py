"""Writes two of scikit-learn's tables as .csv files that the task `table` reads.

    python benchmarks/sklearn_tables.py --output runs/tables
    labo compare --data runs/tables/iris.csv --target y --label-noise 0.2,symmetric --output runs/iris-noise

`iris.csv` has 150 rows and three species. `diabetes.csv` has 442 rows; its classes are the quarters of the disease's
progression, from the lowest to the highest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from sklearn import datasets


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tables"))
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    iris = datasets.load_iris(as_frame=True)
    species = pd.Series(iris.target_names[iris.target], name="y")
    pd.concat([iris.data, species], axis=1).to_csv(asked.output / "iris.csv", index=False)
    diabetes = datasets.load_diabetes(as_frame=True, scaled=False)
    quarters = pd.qcut(diabetes.target, 4, labels=["lowest", "low", "high", "highest"]).rename("y")
    pd.concat([diabetes.data, quarters], axis=1).to_csv(asked.output / "diabetes.csv", index=False)


if __name__ == "__main__":
    main()
