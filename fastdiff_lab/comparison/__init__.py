"""What methods cost and give: `compare`, its tables, image quality, the suite, the benchmark."""
