"""Samples of any kind, and which node has which of them.

* `samples`: `Samples` and `Dataset`: labelled samples and named sets.
* `spec`: `DataSpec`, which describes a set's samples, and `Form`, what models get.
* `codec`: how samples are encoded: what training samples say about scaling, categories, words; `encoder`: does it.
* `moments`: counts, means and sums of squares that merge part by part.
* `data_files`: the set in a file or folder, by what it is.
* `table_files`: sets in CSV and Parquet files.
* `tasks`: what is predicted besides one class: several labels, or targets.
* `strata`: groups of samples by their labels.
* `rows`: the columns that say labels, nodes, and which rows are for tests.
* `table_columns`: the columns of a table as numbers.
* `hugging_face`: sets in folders that Hugging Face's `datasets` has written.
* `series`: series of unequal length and with gaps as arrays.
* `tokens`: texts as tokens.
* `unknown_words`: words that models do not know, and texts that mostly have such.
* `memory`: files that would fill the memory are refused.
* `portraits`: small pictures of samples.
* `datasets`: named sets, from a file, a function, or through torchvision.
* `functions`: sets that a function returns.
* `shipped`: small real sets that come with fedkd.
* `npz`: sets in NumPy files.
* `arrays`: sets of arrays: what they are, labels, classes and nodes.
* `folders`: sets in folders of images.
* `pictures`: the reader of image files.
* `alignment`: sets of one federation in one description.
* `classes`: maps classes by name.
* `cifar10c`: CIFAR-10 under a corruption, as a named set.
* `corruptions`: the 19 corruptions.
* `named_sets`: a named set in the form that a config asks for.
* `splits`: what a scheme of a partition gets and returns.
* `class_partitions`: the schemes that split images by their classes.
* `partitions`: the other schemes, and `split`, which splits images among nodes by one of them.
* `flower_partitions`: the partitioners of flwr_datasets as schemes.
* `public_set`: the public set and the server's validation images.
* `node_tests`: each node's test images.
* `held_out`: training samples in place of test samples.
* `node_validation`: each node's validation samples.
* `federated_data`: `FederatedData`: all of a federation's data.
* `federation`: `federate`: makes the `FederatedData` of a config.
* `writing`: each node's samples as a set of its own.
* `agreement`: what all real sites and the server encode by, as a file.
* `statistics`: what real sites say of their training samples, and the codec that follows for all of them.
* `site_data`: the data of real sites, and the check that they fit the federation.
"""
