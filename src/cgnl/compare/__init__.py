"""Comparing kinds of blocks on the same data, with seeds, tuning and intervals: the command ``cgnl compare``."""
