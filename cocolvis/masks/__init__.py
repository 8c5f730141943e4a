"""From one annotation to the mask of an image. Pure: no file is read or written."""
