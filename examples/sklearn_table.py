"""A table with wrong labels: gradient boosting, a plain perceptron, and LABOClassifier(prior="memory").

    python examples/sklearn_table.py

Classes are scikit-learn's synthetic ones; 30% of the 1,000 training labels are replaced by another class.
"""

import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from labo.integrations.sklearn import LABOClassifier


def main(seed=0):
    x, y = make_classification(3000, 20, n_informative=8, n_classes=4, class_sep=2.0, flip_y=0.0, random_state=seed)
    y = np.array(["north", "east", "south", "west"])[y]
    x, test_x, y, test_y = train_test_split(x.astype(np.float32), y, train_size=1000, random_state=seed)
    draw = np.random.default_rng(seed)
    classes, given = np.unique(y), y.copy()
    wrong = draw.choice(len(y), 300, replace=False)
    given[wrong] = [draw.choice(classes[classes != right]) for right in y[wrong]]

    memory = LABOClassifier(prior="memory", random_state=seed)
    models = {
        "HistGradientBoostingClassifier()": HistGradientBoostingClassifier(random_state=seed),
        "MLPClassifier((256, 256))": make_pipeline(
            StandardScaler(), MLPClassifier((256, 256), max_iter=60, n_iter_no_change=60, random_state=seed)
        ),
        'LABOClassifier(method="none")': LABOClassifier(method="none", random_state=seed),
        'LABOClassifier(prior="memory")': memory,
    }
    print(f"{'Model':35}Accuracy on right labels")
    for name, model in models.items():
        print(f"{name:35}{model.fit(x, given).score(test_x, test_y):.1%}")

    issues = memory.label_issues_
    print(f"\n{len(issues)} of {len(x)} labels look wrong; {np.isin(issues['index'], wrong).mean():.0%} of them are.")
    for row, label, suggested, score in issues[:3]:
        print(f"row {row}: given {label}, looks like {suggested} (score {score:.1f}), in truth {y[row]}")


if __name__ == "__main__":
    main()
