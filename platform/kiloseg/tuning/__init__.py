"""Studies of many trials, which run on Ray Tune."""
