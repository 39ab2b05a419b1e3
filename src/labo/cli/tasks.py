"""`labo tasks`: what there is to train on."""

from __future__ import annotations


def tasks() -> None:
    """What there is to train on."""
    from labo.cli.options import OWN
    from labo.tasks import registry

    for name in registry.available():
        print(f"{name:14} {registry.describe(name)}")
        told = [f"--{key.replace('_', '-')}" if key in OWN else f"--option {key}=…" for key in registry.options(name)]
        print(f"{'':14} options: {', '.join(told)}")
