"""Reports: results of sweeps become one page, the same in Markdown, and CSV; several runs are compared.

    write           `write_report`: the files
    load            results of several files become runs
    compare         differences between runs, regressions
    speedup         speed over eager, from what was measured beside another reference
    headline        what is fastest at each resolution, and still the same model
    intervals       confidence intervals by bootstrap
    series          results become curves; their colours, markers and dashes
    plots, bars     the plots, by curve and by row (what they share: axes)
    svg             matplotlib's figures become SVG that lies inside a page
    published       the paper's own figures
    tables, notes   the table of cells, and what has to be said beside it
    formatting      numbers as text
    page, markdown  the report's text; page.html.j2, macros.html.j2, style.css and script.js are the page
    markdown_text   parts of a Markdown document, in which texts are only text

May import everything but `cli`; is imported by `cli` alone.
"""
