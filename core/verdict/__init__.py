"""Whether features are those of the reference: what every verdict is made of, NumPy alone.

    figures     error statistics between a candidate's features and the reference's
    reference   photographs, and what the reference makes of them
    judging     what is allowed in each precision, and the verdict on figures
    sections    a verdict as artifacts record it

Exports, `fvexport parity`, simplification, sweeps and the search for sensitive layers take all of it from here.
"""
