"""Tasks on the user's own data: what is asked, what the answers are worth, and what changes with the encoder.

What lives here
    answers     accuracy of short answers: VQA v2, ANLS, ChartQA's relaxed accuracy, exact match
    captions    CIDEr-D, BLEU-4 and ROUGE-L
    retrieval   nearest images by pooled features: recall@k
    resample    confidence intervals of differences, paired by item
    items       the user's data: JSON lines, checked whole before anything expensive
    rows        results as JSON lines, taken up where an interrupted run ended
    model_options
                which model answers, and how it sees pictures
    contenders  the encoders of a comparison: PyTorch's, then every artifact on every backend
    answering   items -> rows with a FastVLM
    ttft        time to first token by part, with a language model of the released dimensions
    session     `fvexport ask`: a conversation, a batch, the profile of one answer
    evaluate    `fvexport eval`: one task with several encoders
    eval_report from rows to metrics, differences and agreement

The metrics are pure functions of strings and arrays. May import what `benchmarks` may; is imported by `cli`,
`benchmarks.sweep` and `benchmarks.studies`.
"""
