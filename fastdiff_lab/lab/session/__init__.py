"""The lab without widgets: predictions, one run beside the baseline, and the runs so far."""
