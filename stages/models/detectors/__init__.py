"""Detectors: images in, people out; one file each. base.py is the contract, docs/detectors.md says how good each is."""
