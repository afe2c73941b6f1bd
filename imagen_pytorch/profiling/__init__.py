"""Costs of a model: parameters, FLOPs and memory, estimated before anything is allocated, or measured as it runs."""
