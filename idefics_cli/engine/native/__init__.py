"""The engine of this project: pages encoded once, prefixes shared, sequences decoded together."""
