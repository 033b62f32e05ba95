"""Images: layouts, leases, loading; digits and generated sets for trials and tests."""
