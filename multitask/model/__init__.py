"""The network: trunks, heads, and the model that connects them."""
