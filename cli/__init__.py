"""The command `fvexport`: parse options, call the library once, show what it returned.

What lives here
    main        the group, and what becomes of errors
    *_command   one command each: `onnx_command` is `fvexport onnx`
    options     option types, and single options that commands share
    parsing     text of an option -> its value
    option_groups
                several options of a command as one object
    request_options
                the options of exports, and the request that they become
    vlm_options those of `ask` and `eval`
    signals     what SIGINT, SIGTERM and SIGHUP do
    printing    JSON, tables, notes, errors, sizes
    render_artifact
                tables about one artifact: export, verdict, operators
    render_*    tables of the other commands, beside which they are named
    progress_bar
                a progress bar on the terminal
    doctor_checks
                what `doctor` finds out about this machine

May import everything; nothing imports it. Only click and the standard library are imported with these modules, so
that `fvexport --help` is quick: torch, onnx, rich and the rest are imported inside the commands.
"""
