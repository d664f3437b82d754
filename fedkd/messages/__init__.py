"""What crosses between server and nodes, and how it is checked, counted, merged and carried.

* `payload`: `Payload`: named arrays by kind, numbers, strings; `Expected`: what a reply must hold.
* `arrays`: tensors as Flower's arrays, without a copy where both ends share memory.
* `arrival`: the check of a payload that arrives; what fails it is the failure of its node.
* `metric_names`: names and ranges of the metrics that nodes report.
* `ledger`: the bytes that are sent, by direction and kind.
* `merging`: the weighted mean, and merging block by block.
* `carrier`: `Carrier` and `Engine`: the interface of what carries messages.
* `flower`: the one module that touches Flower's private names.
"""
