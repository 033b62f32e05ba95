"""The worker: trains on leases, exchanges updates with the ps, rejoins after failures."""
