"""Experts: detectors of new names beside a base detector, which goes on to answer for every other word."""
