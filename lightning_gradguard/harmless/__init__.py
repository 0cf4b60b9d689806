"""What only watches can neither end nor change a training: the one guard that every such part runs under."""
