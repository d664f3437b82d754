"""The contract of a method: its two halves, the round that they share, and the loop that runs it.

* `strategy`: `Strategy`: the server half.
* `client`: `Client` and `GlobalModelClient`: the client half, one method for each request.
* `client_app`: the Flower ClientApp that calls the client half.
* `round`: `Round`: the cohort, `ask`, streams and the log, as a method sees them.
* `chosen_model`: the model of a node, or of the server, after a round.
* `round_loop`: `each_round`: the loop over rounds, one for all methods and engines.
* `sampling`: client sampling: the cohort, and the nodes that are measured.
* `record`: the results of a round.
* `undo`: a round with real sites whose result is not usable: it is undone, and the sites that spoiled it are found.
* `log`: which values and names a method may log.
* `state`: the server's state: declared fields, saved and restored; an attribute that is not declared is an error.
* `contract`: the checks of a strategy's class before anything runs.
* `environment`: config, data, device and model objects of a process.
* `gpu_settings`: settings of a whole process, which a run on a GPU changes and puts back.
* `setup`: makes a strategy and its environment from a config.
* `wrapper`: makes strategies by name; `Wrapper`: a strategy that refines a base strategy.
* `flower_strategy`: runs Flower's own strategies in the round loop.
"""
