"""What a run on given PCs would do: a simulation of the exchange with the product's own pacing."""
