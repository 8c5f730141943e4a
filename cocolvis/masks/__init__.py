"""From annotations to the mask of an image. Nothing here reads or writes files."""
