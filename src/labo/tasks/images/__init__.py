"""Image tasks: data, networks, augmentation, corruptions."""
