"""Serving: requests of any kind in one running batch, over HTTP, with a demo page."""
