"""Evaluation of detections: LVIS and COCO metrics, naming of true boxes, decisions, calibration and reports.

Start with run.py, which measures detections and evaluates results files. detector.py collects a detector's detections;
evaluator.py is the base class of the LVIS and COCO evaluators.
"""
