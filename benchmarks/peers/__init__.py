"""The plain ways a user would take without fvexport: rows beside ours in a sweep, and what studies compare with.

    table            `PEERS`: which there are, whether they can run here, their files, and how they are loaded
    plain_export     `torch.onnx.export` of the released form
    quantize_static  onnxruntime's INT8
    tool_files       a file that another tool makes: made once, with a note of its settings
    runners          runs any file on onnxruntime or OpenVINO
    photos           the photographs that tools calibrate on, and those that test

May import what `benchmarks` may; is imported by `benchmarks.sweep` and `benchmarks.studies`.
"""
