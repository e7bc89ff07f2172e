"""Where bytes lie: file systems, the cache of remote files, and leases."""
