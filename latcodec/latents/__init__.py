"""Quantisers, samplers and contexts: posteriors and integers; no networks, no bytes."""
