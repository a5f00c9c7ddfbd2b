"""`stepwarp doctor`: what is wrong with files, with how they go together, and with this machine, before any work."""

from stepwarp.doctor.findings import DoctorReport, Examined, Finding
from stepwarp.doctor.machine import examine_machine
from stepwarp.doctor.together import examine

__all__ = ["DoctorReport", "Examined", "Finding", "examine", "examine_machine"]
