"""`stepwarp doctor`: what is wrong with files, with how they go together, and with this machine, before any work."""

from stepwarp.workflow.doctor.findings import Examined, Finding, Report
from stepwarp.workflow.doctor.machine import examine_machine
from stepwarp.workflow.doctor.together import examine

__all__ = ["Examined", "Finding", "Report", "examine", "examine_machine"]
