"""The embedded world: a small, drawn LVIS that anyone can make in seconds.

Reading order: settings.py (what it is and why), glyphs.py (the classes), layout.py (which objects stand in
which scene), scene.py (drawing one), captions.py (describing one), build.py (writing data sets), hidden.py (what the
federated files leave out).
"""
