"""What a calibration is, how one is fitted, and how it is measured. NumPy and SciPy only: all that serving needs."""
