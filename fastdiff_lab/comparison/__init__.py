"""Compare methods: `compare`, its tables, image quality, the suite."""
