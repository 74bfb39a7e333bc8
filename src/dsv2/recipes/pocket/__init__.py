"""pocket: the small model that the package ships, from the text every installation has."""
