"""Integrations with training libraries. Each is imported with its module, never with `labo`."""
