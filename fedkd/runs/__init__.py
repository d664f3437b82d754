"""A run: from a config to a run folder, with resume after a crash; and grids of runs.

* `run`: `run` and `resume`.
* `run_folder`: the files of a run.
* `forms`: what must be in those files, and what is wrong with one.
* `checkpoints`: the server's and the nodes' states on disk.
* `origin`: what a run began with, and what has changed since.
* `metrics`: lines of metrics.jsonl, and the summary.
* `choosing`: the best round of a run, and when it has stopped improving.
* `evaluation`: the scores of a run's models at its end.
* `scores`: scores of a classifier on labelled samples: confusion matrix, calibration.
* `weight_matrices`: the weights of each node for each other node, of many nodes in a file.
* `figures`: the figures of a run: at its end, and again for a paper or slides.
* `charts`: its curves, partition, matrices and maps.
* `pictures`: its virtual and generated images.
* `styles`: styles of figures, and their files.
* `progress`: progress bars and lines during a run.
* `trackers`: TensorBoard, MLflow, Weights & Biases.
* `sweep`: a grid of runs: its runs, and which of them are finished.
* `search`: searches settings with Optuna.
* `results`: reads finished runs, sorted into arms over seeds.
* `distill`: `fedkd distill`: distils one named set into virtual images.
"""
