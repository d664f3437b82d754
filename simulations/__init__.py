"""The engines: they carry messages to simulated nodes, and change no result.

* `base`: a Flower Grid whose nodes are simulated; what all engines share.
* `node`: one request to one node: its state before and after, injected faults.
* `faults`: which faults are injected, drawn by the seed.
* `inline`: all clients in this process, one after another.
* `ray`: the Ray engine; `ray_actor`: a worker process; `ray_pool`: keeping workers busy, and replacing those that die;
  `ray_placement`: how many fit on a cluster.
* `sweep`: the runs of a grid, several at a time.
"""

import os

# Before anything imports Ray.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU leave CUDA's variable alone
