"""Predict a run on given PCs: a simulation of the exchange with minga's own pacing."""
