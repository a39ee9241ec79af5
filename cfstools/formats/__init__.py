"""Bytes to trees and back: the dump text and composefs images."""
