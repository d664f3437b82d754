"""Data of your own: a table with a column that says who has each row; a model for it, its scores, its predictions.

python examples/own_data.py
"""

from pathlib import Path

import pandas as pd
from sklearn.datasets import load_wine

import fedkd

home = Path("runs/own-data")
home.mkdir(parents=True, exist_ok=True)
wine = load_wine(as_frame=True)
table = wine.frame.rename(columns={"target": "kind"}).sample(frac=1, random_state=0).reset_index(drop=True)
table["kind"] = table["kind"].map(dict(enumerate(wine.target_names)))
table["cellar"] = [f"cellar {i % 3}" for i in range(len(table))]  # the natural nodes
table.to_csv(home / "wine.csv", index=False)

run = fedkd.run(
    {
        "seed": 0,
        "rounds": 15,
        "data": {
            "file": str(home / "wine.csv"),
            "label": "kind",
            "node": "cellar",
            "partition": {"scheme": "natural"},
        },
        "model": {"name": "table_mlp"},
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}},
        "strategy": "fedavg",
        "evaluate": {"every": 5},
    }
)
model = run.model()
scores = fedkd.evaluate(model, str(run.path))
print({name: round(scores["scores"][name], 3) for name in ("accuracy", "macro_f1", "auc", "ece")})
print({node: round(one["accuracy"], 3) for node, one in scores["nodes"].items()})

new = pd.read_csv(home / "wine.csv").drop(columns=["kind", "cellar"]).head(5)  # rows go by the names of columns
print(model.predict(new).labels)
