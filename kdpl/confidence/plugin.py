"""Additions of confidence to kdpl: calibrated errors, and none of these."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={"calibrate": "kdpl.confidence.command:calibrate"},
    callbacks={"confidence": "kdpl.confidence.negatives:callbacks"},
    companions={
        "held_out": "kdpl.confidence.held_out:HeldOutScores",
        "unknown": "kdpl.confidence.unknown:Unknown",
    },
    handover={"confidence": "kdpl.confidence.companions:make_companions"},
    predict={"confidence": "kdpl.confidence.command:options"},
    report={
        "calibration": "kdpl.confidence.report:CALIBRATION",
        "rejection": "kdpl.confidence.report:REJECTION",
    },
)
