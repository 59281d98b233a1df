"""Run a pipeline one way: methods, call options, batches, rivals."""
