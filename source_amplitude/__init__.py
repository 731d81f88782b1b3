"""The Amplitude source for Airbyte: manifest.yaml and components.py, run as a Python package."""

from source_amplitude.run import SourceAmplitude

__all__ = ["SourceAmplitude"]
