"""Images: layouts, leases, loading; digits and generated sets to try things with."""
