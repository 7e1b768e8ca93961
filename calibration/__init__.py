"""Half and eight-bit models that keep the features: what is observed, and what is made of it.

    calibration_options
                    the options of a calibration
    photos          photographs to calibrate on
    histograms      what is kept of each activation: exact extremes, histograms, covariances
    ranges_file     all of it for one model, resolution and data set, as a file
    observe         runs the photographs through the fused model, resumable
    calibrate       `ranges.json`, for several exports
    ranges_record   that file as structs
    ranges          from a histogram to a scale: min-max, percentile, entropy, MSE
    policy          which layers carry Q/DQ for which target, and why
    equalize        per-channel scales moved through linear operations, outputs unchanged
    qdq             modules that quantize exactly as the exported file does
    gptq            integer weights that make up for their own error
    quantize        all of it: a fused model and its statistics in, a quantized model out
    sensitivity     what each layer costs, and which stay in float for a bound
    fp16            power-of-two scales that keep FP16 from overflowing
    findings        what an artifact records of the last two

Every step is a function from module to module that leaves its input alone; the exporter writes down what it is given.
May import `encoder` and `core`; is imported by `export`, `benchmarks` and `cli`.
"""
