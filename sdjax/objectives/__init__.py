"""Losses and advantages as functions of arrays."""
