"""diffusers: any sampler in any pipeline, any pipeline's network as a denoiser."""

from twosides.integrations.diffusers.scheduler import Scheduler, SchedulerOutput

__all__ = ["Scheduler", "SchedulerOutput"]
