"""Shapes, weights and ranks to run benches on: made up, but of real sizes."""
