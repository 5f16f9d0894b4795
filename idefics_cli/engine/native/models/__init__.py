"""The models: vision towers, connectors, decoders."""
