"""The engines: they carry messages to simulated nodes. The choice of the engine does not change results.

* `base`: a Flower Grid with simulated nodes; the common part of all engines.
* `node`: one request to one node: its state before and after, injected faults.
* `node_states`: the nodes' states; a state counts once the server has accepted the reply.
* `faults`: the injected faults, drawn from the seed.
* `inline`: all clients in this process, one after another.
* `vectorised`: many clients in one step; `stacking`: does their work together where it can be; `kinds`: the kinds of
  work that can be; `meeting`: clients that run side by side up to this work; `path_choice`: how they are stacked, by
  measuring.
* `ray`: the Ray engine; `ray_actor`: a worker process; `ray_pool`: gives work to workers, and replaces workers that
  die; `ray_placement`: how many workers fit on a cluster; `ray_cluster`: a run's own cluster, closed to others;
  `ray_keeper`: removes what it leaves behind.
* `sweep`: the runs of a grid, several at a time.
"""

import os

# Ray reads these variables when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU do not change CUDA's variable
