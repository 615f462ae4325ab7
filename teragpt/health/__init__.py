"""Whether a run's ranks are well: that they agree before it, that none hangs in it, what one that fails leaves."""
