"""This package stores bytes: it has file systems, the cache of remote files, and leases."""
