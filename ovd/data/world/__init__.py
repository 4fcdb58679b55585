"""The embedded world: a small, drawn LVIS that can be generated in seconds.

Reading order: settings.py (settings and their reasons), glyphs.py (classes), layout.py (objects of each scene),
scene.py (drawing a scene), captions.py (describing a scene), build.py (writing data sets), hidden.py (objects that the
federated files leave out), foreign.py (data sets that share nothing with the world).
"""
