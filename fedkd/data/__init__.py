"""Images, and which node has which images.

* `images`: `Images` and `Dataset`: labelled images and named sets.
* `datasets`: named sets, from a file or through torchvision.
* `npz`: sets in NumPy files.
* `folders`: sets in folders of images.
* `pictures`: the reader of image files.
* `classes`: maps classes by name.
* `cifar10c`: CIFAR-10 under a corruption, as a named set.
* `corruptions`: the 19 corruptions.
* `named_sets`: a named set in the form that a config asks for.
* `partitions`: the schemes that split images among nodes.
* `public_set`: the public set and the server's validation images.
* `node_tests`: each node's test images.
* `federated_data`: `FederatedData`: all of a federation's data.
* `federation`: `federate`: makes the `FederatedData` of a config.
* `site_data`: the data of real sites, and the check that they fit the federation.
"""
