"""What the codecs of TIFF need beside their libraries: our JPEG decoder, and streams that are refused before they are decoded."""
