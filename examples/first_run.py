"""A first run: a federation of six nodes, its metrics as a table, a figure, and a node's model.

python examples/first_run.py
"""

import fedkd

run = fedkd.run("fedmd/quick", rounds=4, evaluate={"every": 1}, checkpoint={"best": "personal/accuracy"})

table = run.metrics  # a row for each round, and one for each node that was measured in it
print(table[table.node.isna()][["round", "personal/accuracy", "bytes_up"]].to_string(index=False))

figure = run.path / "accuracy.png"
run.figures["accuracy"].savefig(figure)

model = run.model(node=3, which="best")
images = run.test_samples()  # raw ones: the model prepares them
found = model.predict(images)
print(f"node 3 says {found.labels[:8]}, with probabilities {found.probabilities.max(1)[:8].round(2)}")
print(f"{figure}, and the run is in {run.path}")
