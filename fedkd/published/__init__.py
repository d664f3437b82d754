"""Other people's tables, run again in their own settings: `fedkd reproduce`.

* `tables`: a table: its rows, its published figures, how each figure is read from a run.
* `readings`: from the rounds of a run to the numbers that a table reports.
* `results`: which runs a table needs, what they give, and whether it agrees with what was published.
* `chain`: rows whose runs start from the best model of another row's run.
* `distillations`: tables whose runs are distillations of a set: their jobs, and the accuracies of their networks.
* `models`: the networks of the authors' code.
* `partitions`: the deals of the authors' code, with their random numbers.
"""
