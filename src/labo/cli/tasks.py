"""`labo tasks`: the tasks and their options."""

from __future__ import annotations


def tasks() -> None:
    """List the tasks and their options."""
    from labo.cli.options import DEDICATED_OPTIONS
    from labo.tasks import registry

    for name in registry.available():
        print(f"{name:14} {registry.describe(name)}")
        flags = [
            f"--{key.replace('_', '-')}" if key in DEDICATED_OPTIONS else f"--option {key}=…"
            for key in registry.options(name)
        ]
        print(f"{'':14} options: {', '.join(flags)}")
