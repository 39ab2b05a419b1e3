"""Speed and memory of the losses, compared with PyTorch's own."""
