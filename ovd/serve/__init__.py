"""A server of a detector, with an HTTP API (app.py) and a web page (`static/`)."""
