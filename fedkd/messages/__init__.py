"""The messages between server and nodes: their content, and how it is checked, counted, merged and carried.

* `payload`: `Payload`: named arrays by kind, numbers, strings; `Expected`: what a reply must contain.
* `arrays`: tensors as Flower's arrays, without a copy where both ends share memory.
* `arrival`: the check of a payload that arrives; a bad one is recorded as a failure of its node.
* `metric_names`: names and ranges of the metrics that nodes report.
* `ledger`: the bytes that are sent, by direction and kind.
* `merging`: the weighted mean, and merging block by block.
* `carrier`: `Carrier` and `Engine`: the interface to send messages to nodes.
* `flower`: the only module that uses Flower's private names.
"""
