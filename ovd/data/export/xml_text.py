"""Conversion of an XML tree to indented text."""

from xml.etree.ElementTree import Element, indent, tostring


def xml_text(root: Element) -> str:
    indent(root)
    return tostring(root, encoding="unicode") + "\n"
