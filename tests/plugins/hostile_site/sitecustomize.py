"""On the path of a SuperNode's processes it makes the site hostile: a trick in each round, and lies about itself."""

import os
import sys

if "clientapp" in " ".join(sys.orig_argv):
    import contextlib

    from flwr.app import MetricRecord
    from helpers.tricks import TRICKS

    from fedkd.deployment import on_site

    _honest = on_site.SiteApp.__call__

    def _hostile(self, message, context):  # type: ignore[no-untyped-def]
        reply = _honest(self, message, context)
        kind, number = message.metadata.message_type, int(message.metadata.group_id or 0)
        if kind == "query.join" and "LIED_IMAGES" in os.environ:
            numbers = {**reply.content["numbers"], "images": float(os.environ["LIED_IMAGES"])}
            reply.content["numbers"] = MetricRecord(numbers)
        if kind == "train.fit" and number <= len(TRICKS):
            with contextlib.suppress(IndexError):
                list(TRICKS.values())[number - 1](reply.content)
        return reply

    on_site.SiteApp.__call__ = _hostile  # type: ignore[method-assign]
