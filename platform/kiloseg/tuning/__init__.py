"""Studies of many trials on Ray Tune."""
