"""A small class-conditional network: its data, network, training and export."""
