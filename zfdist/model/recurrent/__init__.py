"""The loops over time, and who runs them: recurrent cores, latent chains, LSTMs."""
