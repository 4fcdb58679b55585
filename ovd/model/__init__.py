"""The detector. Begin with backbone.py, gates.py and detector.py; then assign.py, losses.py and postprocess.py."""
