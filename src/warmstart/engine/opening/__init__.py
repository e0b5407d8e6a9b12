"""The data and the model of a run, opened together."""
