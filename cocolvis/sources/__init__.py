"""The annotation files of COCO-Stuff and LVIS: where they lie, what they hold, and which records are refused."""
