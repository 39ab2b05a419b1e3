"""Tasks over tables: columns to features, small networks."""
