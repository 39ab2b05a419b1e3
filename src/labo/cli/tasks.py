"""`labo tasks`: what there is to train on."""

from __future__ import annotations


def tasks() -> None:
    """What there is to train on."""
    from labo.tasks import registry

    for name in registry.available():
        print(f"{name:14} {registry.describe(name)}")
        print(f"{'':14} options: {', '.join('--' + option.replace('_', '-') for option in registry.options(name))}")
