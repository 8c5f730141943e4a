"""The generated COCO + LVIS tree."""
