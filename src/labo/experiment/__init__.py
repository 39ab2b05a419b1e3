"""Trials and comparisons of methods: settings, tuning, where trials run, and what is measured on them."""
