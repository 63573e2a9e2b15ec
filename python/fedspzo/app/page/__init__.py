"""The page of `fedspzo report`: what runs have left in their folders, as one HTML file.

`recorded` and `journal_facts` read a folder. `figures`, `heatmap` and `tables` make of it what is
shown, `panels` puts these together, and `page` fills in `page.html`, with `page.css` and `page.js`.

May import all other packages. Only the command line imports this one.
"""
