"""Raw formats, one file each: a function that reads a folder or file into Detectron2's standard records."""
