"""Other tools' INT8 files of the same weights, for `int8_rivals`.

outliers     seeded weights with outlier channels, the function unchanged
quantizers   each tool and its settings
candidates   each tool's file on a runtime, and what is known of it
measure      makes the files, compares them with the eager model, times them side by side
"""
