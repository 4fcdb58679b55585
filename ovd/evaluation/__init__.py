"""What detections are worth: LVIS's and COCO's metrics, naming of true boxes, decisions, calibration, reports.

Begin with run.py, which evaluates a detector or a results file; evaluator.py is what all metrics of boxes share.
"""
