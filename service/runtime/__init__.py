"""What answers requests: sessions of the network, the live models, and the way from bytes to scores."""
