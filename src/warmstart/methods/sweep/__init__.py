"""sweep: one config, some settings varied, many trials, the best of them on val."""
