"""What commands do to data sets, and training does not need: check, clean, put archives in place, export."""
