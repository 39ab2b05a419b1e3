"""What predictions are measured by, and when a difference is more than luck."""
