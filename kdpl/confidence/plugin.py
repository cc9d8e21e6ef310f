"""Additions of confidence to kdpl: calibrated errors, none of these, drift."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={
        "calibrate": "kdpl.confidence.command:calibrate",
        "watch": "kdpl.confidence.command:watch",
    },
    callbacks={"confidence": "kdpl.confidence.negatives:callbacks"},
    companions={
        "held_out": "kdpl.confidence.held_out:HeldOutScores",
        "pool_sample": "kdpl.confidence.drift.image_sample:ImageSample",
        "unknown": "kdpl.confidence.unknown:Unknown",
    },
    handover={"confidence": "kdpl.confidence.companions:make_companions"},
    predict={"confidence": "kdpl.confidence.command:options"},
    report={
        "calibration": "kdpl.confidence.report:CALIBRATION",
        "rejection": "kdpl.confidence.report:REJECTION",
    },
)
