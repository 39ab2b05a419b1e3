"""What is on the disk: trials, comparisons and measurements, read and written here alone. Needs no torch, no pandas."""
