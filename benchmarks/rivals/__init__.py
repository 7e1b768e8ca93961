"""Other tools' INT8 files of the same weights, for `int8_rivals`.

data         which photographs calibrate and which test
outliers     seeded weights with outlier channels, the function unchanged
quantizers   each tool, its settings, and the file it makes
runners      a file on onnxruntime or OpenVINO
"""
