"""What `hyperstack bench` runs: workloads, contestants, and fair measurement."""
