"""What there is to train on: data, networks and default settings, under one name each."""

from __future__ import annotations

from labo.tasks.registry import available, create, describe, kind, options, shifts

__all__ = ["available", "create", "describe", "kind", "options", "shifts"]
