"""Samples of models and pipelines by names, into files and folders."""
