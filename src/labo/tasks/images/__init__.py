"""Tasks over pictures: the data, the networks, what is done to batches."""
