"""The models: vision encoders, connectors, decoders."""
