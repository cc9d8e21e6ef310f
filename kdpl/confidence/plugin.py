"""Additions of confidence to kdpl: calibrated errors, none of these, trees of classes, drift."""

from kdpl.runtime.plugins import Plugin

PLUGIN = Plugin(
    commands={
        "calibrate": "kdpl.confidence.command:calibrate",
        "watch": "kdpl.confidence.command:watch",
    },
    callbacks={
        "confidence": "kdpl.confidence.negatives:callbacks",
        "taxonomy": "kdpl.confidence.taxonomy.callback:callbacks",
    },
    companions={
        "held_out": "kdpl.confidence.held_out:HeldOutScores",
        "pool_sample": "kdpl.confidence.drift.image_sample:ImageSample",
        "taxonomy": "kdpl.confidence.taxonomy.scores:LevelScores",
        "unknown": "kdpl.confidence.unknown:Unknown",
    },
    handover={"confidence": "kdpl.confidence.companions:make_companions"},
    predict={
        "confidence": "kdpl.confidence.command:options",
        "taxonomy": "kdpl.confidence.command:level_option",
    },
    report={
        "calibration": "kdpl.confidence.report:CALIBRATION",
        "rejection": "kdpl.confidence.report:REJECTION",
        "taxonomy": "kdpl.confidence.report:TREE",
    },
)
