"""`calibrate` -> `ReuseCosts` -> `derive_schedule`, `refine_schedule`."""
