"""A small class-conditional network of its own making: data, network, training and export."""
