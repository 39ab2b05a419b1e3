"""The outer problem: how the labels are learnt, decided by data that the network did not train on."""
