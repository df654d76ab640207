"""What is sparse: `sparsify` and what it decides, asks and saves."""
