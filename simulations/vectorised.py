"""The vectorised engine: clients of one architecture train in one step, in this process.

Made for a GPU, which a step of one small model leaves nearly idle. Clients run as in the inline engine up to their
training or prediction; then those with the same kind of loss, optimiser and model work together. What cannot be stacked
works one client at a time, and an event says why. Results are those of the inline engine up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from flwr.app import Message

from fedkd.core.environment import Device, Threads
from fedkd.core.setup import Setup
from fedkd.messages.arrays import owned
from fedkd.messages.arrival import Door
from fedkd.messages.merging import Block, Merge, merge_block

from .inline import InlineGrid
from .path_choice import WantedPath, paths_of_step
from .stacking import ClientsPerStep, Fixed, Stacker, blocks_of_step, clients_of_step, note_step, parted


class VectorisedGrid(InlineGrid):
    """Clients of one exchange run in groups, in the order of the cohort. The groups do not depend on the machine."""

    def __init__(
        self,
        setup: Setup,
        *,
        threads: Threads = 1,
        device: Device = "auto",
        deterministic: bool = True,
        clients_per_step: ClientsPerStep = "auto",
        path: WantedPath = "auto",
        cuda_graphs: bool = False,
        compile: bool = False,
    ) -> None:
        """Train `clients_per_step` clients in one step. `path`: how, see `stacked_models`; a list: of each model.

        `auto`: on a GPU the fastest one, measured before round 1; on a CPU folded where a model can be.
        `cuda_graphs`: record a step on a GPU once, and replay it. `compile`: compile it by `torch.compile`.
        What `auto` means is written into the run's config, so that a resumed run does the same. Raises InputError for
        a folded path of a model that has layers which it does not know.
        """
        super().__init__(setup, threads=threads, device=device, deterministic=deterministic)
        try:
            self._clients = clients_of_step(self._environment, clients_per_step)
            path = paths_of_step(self._environment, path, self._clients, self.note)
            self._stacker = Stacker(self._environment, self._clients, path, Fixed(cuda_graphs, compile))
        except BaseException:
            self.close()
            raise
        note_step(self._environment, self._clients, path)

    def carry(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients group by group."""
        for group in parted(messages, self._clients):
            yield from self._run(group)

    def carry_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients group by group, and merge their replies block by block."""
        for group in parted(blocks, blocks_of_step(self._clients)):
            replies = iter(self._run([message for block in group for message in block]))
            for block in group:
                yield merge_block((next(replies) for _ in block), merge, door)

    def _run(self, group: list[Message]) -> list[Message]:
        found = self._stacker.run([partial(self._owned, message) for message in group])
        for text in self._stacker.events:
            self.note(text)
        self._stacker.events = []
        return found

    def _owned(self, message: Message) -> Message:
        reply = self._call(message)
        if not reply.has_error():
            reply.content = owned(reply.content)  # the next client changes the model
        return reply
