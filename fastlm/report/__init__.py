# SPDX-License-Identifier: Apache-2.0
"""Mismatched generalisation: whether a model says again what it was trained on, or nothing in particular."""

from fastlm.report.fitting import Fit
from fastlm.report.memorisation import Copies, Exposure, Span, exposure
from fastlm.report.prediction import Calibration, Domain, Gap, Interval, Surprise
from fastlm.report.report import Report, read_curve, report
from fastlm.report.statistics import Comparison
from fastlm.report.verdicts import Verdict

__all__ = [
    "Calibration",
    "Comparison",
    "Copies",
    "Domain",
    "Exposure",
    "Fit",
    "Gap",
    "Interval",
    "Report",
    "Span",
    "Surprise",
    "Verdict",
    "exposure",
    "read_curve",
    "report",
]
