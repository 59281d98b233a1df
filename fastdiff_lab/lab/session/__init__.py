"""The interactive lab without its widgets: what a schedule is predicted to cost, one run beside the untouched one, the runs so far."""
