"""A worker: trains on leases, exchanges updates with the ps, comes back by itself."""
