"""The table of CUPre's paper: arms by annotated share and seed."""
