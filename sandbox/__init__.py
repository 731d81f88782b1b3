"""A local stand-in for Amplitude's API, for tests, benchmarks and the demo.

`Sandbox` serves a `Project` of synthetic data over HTTPS on the loopback interface. It is reached
as an HTTPS proxy for Amplitude's hosts, so that an unmodified client talks to it. `Fault` makes
chosen requests go wrong.
"""

from sandbox.app import Fault, ReceivedRequest, Sandbox
from sandbox.project import Project

__all__ = ["Fault", "Project", "ReceivedRequest", "Sandbox"]
