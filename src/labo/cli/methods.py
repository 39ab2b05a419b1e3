"""`labo methods`: the regularizers."""

from __future__ import annotations


def methods() -> None:
    """The regularizers: source, options, needs."""
    from labo import regularizers

    for name in regularizers.available():
        found = regularizers.describe(name)
        print(f"{name:20} {found.summary}" + (f" ({found.paper})" if found.paper else ""))
        if found.defaults:
            defaults = ", ".join(f"{key}={'none' if value is None else value}" for key, value in found.defaults.items())
            print(f"{'':20} options: {defaults}")
        if found.needs:
            print(f"{'':20} needs: {', '.join(found.needs)}")
    print("\nOne of your own, in a module that Python can import: --methods my_module:MyRegularizer")
