"""Tasks on the user's own data: what is asked, what the answers are worth, and what changes with the encoder.

What lives here
    answers     accuracy of short answers: VQA v2, ANLS, ChartQA's relaxed accuracy, exact match
    captions    CIDEr-D, BLEU-4 and ROUGE-L
    retrieval   nearest images by pooled features: recall@k
    resample    confidence intervals of differences, paired by item

The metrics are pure functions of strings and arrays. May import what `benchmarks` may; is imported by `cli` alone.
"""
