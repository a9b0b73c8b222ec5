"""zfdist: stochastic recurrent networks, trained on a cluster."""
