"""The cascade: the only place where networks meet the diffusion process."""
