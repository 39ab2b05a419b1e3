"""The outer problem: choosing how labels are learnt, by held-out data."""
