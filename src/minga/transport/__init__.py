"""What crosses the wire: one TLS port, a join, and a torch RPC session inside it."""
