"""Trials and the comparison made of them: settings, training, records, and where trials run."""
