"""Recordings from the network into a folder that a run can train on; nothing is fetched unless `collect` is called."""
