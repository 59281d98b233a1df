"""One way of running a pipeline: methods, call options, batches, rivals."""
