"""Names of the exported file's input and output, by which runtimes and engine builds address them."""

INPUT_NAME, OUTPUT_NAME = "pixel_values", "image_features"
