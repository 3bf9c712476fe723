"""Models: the card, the networks, the registry and the predictor. Only `networks` and `predictor` import torch."""
