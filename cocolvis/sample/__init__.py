"""Generates COCO + LVIS trees and label images with exact annotations: a small sample, a long tail, and many classes."""
