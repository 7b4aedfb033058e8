"""The report of a run: a page that opens anywhere, its figures as files and its numbers as CSV.

data.py        a run folder as one record; what is missing
verdict.py     the first sentence and the row of numbers
tables.py      metrics as tables (core/tables.py), by section; run_tables.py: those of a run beside
figures.py     what is drawn, as data (kinds.py)
draw.py        a figure as SVG, on the page and as a file; svg.py, plots.py: its parts
grids.py       the numbers behind a grid, for hovering and keeping
content.py     completions side by side, what was run
page.py        all of it in one HTML file
compare.py     several runs as one record; compare_page.py: its tables and page
csv_tables.py  plain numbers for other programs
notebook.py    records as a notebook shows them
"""
