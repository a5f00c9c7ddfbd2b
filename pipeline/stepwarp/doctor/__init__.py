"""`stepwarp doctor`: what is wrong with files, with how they go together, and with this machine, before any work."""

from stepwarp.doctor.findings import Examined, Finding, Report
from stepwarp.doctor.machine import examine_machine
from stepwarp.doctor.together import examine

__all__ = ["Examined", "Finding", "Report", "examine", "examine_machine"]
