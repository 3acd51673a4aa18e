"""Adapters for diffusers: any sampler in any pipeline, any pipeline's network as a denoiser."""

from twosides.integrations.diffusers.export import save_as_pipeline, to_pipeline
from twosides.integrations.diffusers.networks import load_denoiser
from twosides.integrations.diffusers.report import Report, explain
from twosides.integrations.diffusers.scheduler import Scheduler, SchedulerOutput

__all__ = [
    "Report",
    "Scheduler",
    "SchedulerOutput",
    "explain",
    "load_denoiser",
    "save_as_pipeline",
    "to_pipeline",
]
