"""A run: from a config to a folder, and on after a crash; and grids of runs.

* `run`: `run` and `resume`.
* `run_folder`: the files of a run.
* `checkpoints`: the server's and the nodes' states on disk.
* `metrics`: lines of metrics.jsonl, and the summary.
* `figures`: the pictures of a run.
* `progress`: bars and lines while it goes on.
* `trackers`: TensorBoard, MLflow, Weights & Biases.
* `sweep`: a grid of runs: what is in it, what of it is done.
* `results`: reading runs back, sorted into arms over seeds.
* `distill`: `fedkd distill`: one named set into virtual images.
"""
