"""The monitors of a machine: QMP, and the one for people."""
