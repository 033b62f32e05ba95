"""The parameter server: coordinator, session processes, shared parameters, ledger."""
