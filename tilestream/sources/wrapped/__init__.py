"""Sources made of another source: colours by a profile, a mask on white."""
