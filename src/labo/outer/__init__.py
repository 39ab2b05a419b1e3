"""The outer problem: choosing how labels are learnt, by held-out data."""

from labo.outer.channel import Channel, fit_channel, posterior_labels

__all__ = ["Channel", "fit_channel", "posterior_labels"]
