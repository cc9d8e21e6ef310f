"""Report sections on calibration and rejection; only the report loads them."""

from pathlib import Path

from kdpl.confidence.report.calibration import calibrate
from kdpl.confidence.report.rejection import rejection
from kdpl.report.page import Section

_TEMPLATES = Path(__file__).parent / "templates"

CALIBRATION = Section(
    "Calibration", calibrate, _TEMPLATES / "calibration.html.jinja", "confusions", wide=False
)
REJECTION = Section("Rejection", rejection, _TEMPLATES / "rejection.html.jinja", "calibration")
