"""Training on distilled images: FedAvg, or another base, whose clients train on virtual images, not on real ones.

The baselines of FedLGD (Huang et al., TMLR, arXiv:2303.02278).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fedkd import (
    IMAGES,
    NO_GRADIENT,
    VIRTUAL_KINDS,
    Client,
    Environment,
    Expected,
    InputError,
    Kind,
    NamedTable,
    Round,
    SelfSupervised,
    VirtualImages,
    VirtualImagesClient,
    Wrapper,
)


@dataclass(kw_only=True)
class FedAvgVirtual(VirtualImages, Wrapper):
    """A base that averages weights (FedAvg by default), on virtual images: FedLGD's baselines (Huang et al., TMLR).

    Each client distils its images before round 1 and then trains only on the virtual images. Nothing else of the base
    changes. Test images are real. A node that joins late, or misses some of the initial steps, does them
    before it trains.
    """

    kinds: ClassVar[frozenset[Kind]] = VIRTUAL_KINDS
    why_not: ClassVar[Mapping[Kind, str]] = NO_GRADIENT
    base: NamedTable = field(default_factory=lambda: NamedTable(name="fedavg"))

    def client_class(self) -> type[Client]:
        """Return the base's client half with virtual images as its data."""
        return type("FedAvgVirtualClient", (VirtualImagesClient, super().client_class()), {})

    def check(self, environment: Environment) -> None:
        """Also raise InputError for a base with its own virtual images, and for `data.augment`."""
        if isinstance(self.layers()[-1], VirtualImages):
            raise InputError(f"strategy.base.name = {self.base.name!r}: it makes its own virtual images; run it alone.")
        if isinstance(self.layers()[-1], SelfSupervised) and environment.data.spec.kind != "image":
            raise InputError(
                f"strategy.base.name = {self.base.name!r}: its views are of raw samples; virtual ones are encoded."
            )
        super().check(environment)
        self.check_images(environment)

    def prepare_nodes(self, federation: Round) -> None:
        """Ask nodes to make their virtual images."""
        expect = Expected(numbers={"examples": IMAGES})
        nodes = [node for node, _ in federation.ask("begin", expect=expect)]
        self.distil(federation, nodes)

    def prepare(self, federation: Round) -> None:
        """Show the virtual images, then call the base's `prepare`."""
        self.show_images(federation)
        super().prepare(federation)

    def run_round(self, federation: Round) -> None:
        """Call the base's `run_round`, and show the virtual images."""
        super().run_round(federation)
        self.show_images(federation)
