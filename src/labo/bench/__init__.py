"""Speed and memory of the losses, beside PyTorch's own: what is timed, and how."""
