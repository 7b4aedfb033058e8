"""The report of a run: a page that opens anywhere, its figures as files and its tables as CSV.

data.py          a run folder as one record; what is missing
verdict.py       the first sentence and the row of numbers
figures.py       what is drawn, as data (kinds.py)
svg.py plots.py  the same as SVG for the page; images.py as SVG, PNG or PDF files
grids.py         the numbers behind a grid, for hovering and keeping
content.py       the tables and texts of the page (rates.py: shares with intervals)
csv_tables.py    the tables as CSV
page.py          all of it into one HTML file; compare_page.py: several runs
"""
