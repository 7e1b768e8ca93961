"""Names in the exported file by which runtimes and engine builds address its parts."""

INPUT_NAME, OUTPUT_NAME = "pixel_values", "image_features"
PLUGIN_DOMAIN, PLUGIN_NAME = "fvexport", "Attention"
"""The operator set and the operator of the attention plugin, see `attention_plugin`."""
