"""The short list of advice, tried by successive halving: `warmstart advise --run`."""
