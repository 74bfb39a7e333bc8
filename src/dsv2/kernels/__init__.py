"""The ops of the model: contract, registry, reference and fast versions."""
