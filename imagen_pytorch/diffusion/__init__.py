"""The mathematics of diffusion: schedules, objectives, losses, guidance, samplers, and the process that joins them."""
