"""A detector as a page for the browser and behind an HTTP API (app.py); `static/` is the page."""
