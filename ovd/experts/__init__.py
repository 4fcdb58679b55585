"""Experts: detectors of new names beside a base detector, which still answers all other queries."""
