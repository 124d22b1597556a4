"""How a classifier is made: data, losses, the loop, export, bundles."""
