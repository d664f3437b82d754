"""Images, and which node has which of them.

* `images`: `Images` and `Dataset`: what a set is.
* `datasets`: named sets, from a file or through torchvision.
* `npz`: sets in NumPy files.
* `folders`: sets in folders of images.
* `cifar10c`: CIFAR-10 under a corruption, as a named set.
* `corruptions`: the 19 corruptions.
* `named_sets`: a named set in the form that a config asks for.
* `partitions`: the schemes that deal images to nodes.
* `public_set`: the public set and the server's validation images.
* `node_tests`: each node's test images.
* `federated_data`: `FederatedData`: all of a federation's data.
* `federation`: `federate`: from a config to that.
* `site_data`: the data of real sites, and whether they fit.
"""
