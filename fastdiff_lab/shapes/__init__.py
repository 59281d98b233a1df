"""The embedded pipeline: scenes and captions, the judge, training."""
