"""Settings of a run and options of a process: schema, fields, sources, environment."""
